"""Drawing samples."""

from scripts.sampling.reverse import reverse_process as reverse_process
