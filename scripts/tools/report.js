// Without this script the page shows everything, too; with it, one moves through samples and reads values off the charts.
"use strict";

for (const card of document.querySelectorAll(".scrubber")) {
  const figures = [...card.querySelectorAll("figure")].reverse();  // newest first in the page, oldest left on the slider
  if (figures.length < 2) continue;
  const label = document.createElement("label"), slider = document.createElement("input");
  const show = () => {
    figures.forEach((figure, i) => figure.classList.toggle("shown", i === slider.valueAsNumber));
    slider.setAttribute("aria-valuetext", figures[slider.valueAsNumber].querySelector("figcaption").textContent);
  };
  Object.assign(slider, {type: "range", min: 0, max: figures.length - 1, value: figures.length - 1, oninput: show});
  label.append("Drag through training", slider);
  card.classList.add("scrub");
  card.append(label);
  show();
}

if (!matchMedia("(prefers-reduced-motion: reduce)").matches) {
  for (const video of document.querySelectorAll("video")) video.play().catch(() => {});  // a browser may refuse: it has controls
}

for (const chart of document.querySelectorAll(".chart")) {
  const svg = chart.querySelector("svg"), output = chart.querySelector("output"), plot = chart.querySelector(".plot");
  const range = name => svg.dataset[name].split(" ").map(Number);
  const [x0, x1] = range("x"), [y0, y1] = range("y"), log = "log" in svg.dataset;
  const value = top => {
    const part = 1 - top / 1000;
    return log ? y0 * (y1 / y0) ** part : y0 + (y1 - y0) * part;
  };
  const text = v => String(Math.abs(v) < 1e-4 || Math.abs(v) >= 1e6 ? v.toExponential(2) : +v.toPrecision(3));
  const lines = [...svg.querySelectorAll("polyline")].map(line => ({
    name: line.dataset.name, colour: line.classList[0], points: [...line.points],
  }));
  const cursor = document.createElementNS(svg.namespaceURI, "path");
  cursor.classList.add("cursor");
  svg.append(cursor);
  const latest = [...output.childNodes];
  plot.onpointermove = plot.onpointerdown = event => {
    const box = svg.getBoundingClientRect(), at = (event.clientX - box.left) / box.width * 1000;
    const nearest = points => points.reduce((a, b) => Math.abs(b.x - at) < Math.abs(a.x - at) ? b : a);
    const x = nearest(lines.flatMap(line => nearest(line.points))).x;
    cursor.setAttribute("d", "M" + x + " 0v1000");
    output.replaceChildren("step " + Math.round(x0 + (x1 - x0) * x / 1000).toLocaleString("en"));
    for (const line of lines) {
      const item = document.createElement("span");
      item.className = line.colour;
      item.textContent = (line.name + " " + text(value(nearest(line.points).y))).trim();
      output.append(" ", item);
    }
  };
  plot.onpointerleave = () => {
    cursor.removeAttribute("d");
    output.replaceChildren(...latest);
  };
}
