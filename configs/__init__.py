"""Experiment configs: `default.py` documents every key, each experiment file states only its
differences.
"""
