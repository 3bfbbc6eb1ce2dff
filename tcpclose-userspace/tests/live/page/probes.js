// What a test asks of the page, from inside it. Nothing here changes the page.
const probes = { violations: [] };
globalThis.probes = probes;
addEventListener("securitypolicyviolation", (event) => probes.violations.push(event.violatedDirective));

const number = (text) => (text === "–" ? null : Number(text.replaceAll("\u202f", "")));

/** Every number that the page shows and that /metrics has as it is. */
probes.numbers = () => {
  const boxes = {};
  for (const box of document.querySelectorAll("#machine .box")) {
    boxes[box.dataset.state] = number(box.querySelector(".count").textContent);
  }
  const ports = {};
  for (const row of document.querySelectorAll("#port-table tbody tr")) {
    const cells = {};
    for (const cell of row.cells) cells[cell.dataset.column] = cell.textContent;
    ports[row.dataset.pair] = cells;
  }
  const steps = {};
  for (const row of document.querySelectorAll("#step-table tbody tr")) {
    const [from, to, count, rate, median] = [...row.cells].map((cell) => cell.textContent);
    steps[`${from} ${to}`] = { count: number(count), rate, median };
  }
  const arrows = {};
  for (const step of document.querySelectorAll("#machine .step")) {
    const text = (name) => step.querySelector(name)?.textContent ?? null;
    arrows[step.dataset.step] = { rate: text(".rate"), median: text(".median") };
  }
  const list = (id) => [...document.querySelectorAll(`#${id} li`)].map((line) => number(line.querySelector("b").textContent));
  const [owners, reasons, verdicts] = [list("owners"), list("reasons"), list("verdicts")];
  return { boxes, ports, steps, arrows, owners, reasons, verdicts, stuck: number(document.getElementById("stuck").textContent) };
};

const channels = (color) => {
  const [r, g, b, alpha = 1] = color.match(/[\d.]+/g).map(Number);
  return { r, g, b, alpha };
};
const luminance = ({ r, g, b }) => {
  const [red, green, blue] = [r, g, b].map((value) => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
};

/** The paper that a text stands on. */
const paper = (element) => {
  const box = element.closest(".box");
  if (box) return getComputedStyle(box.querySelector("rect")).fill;
  for (let at = element; at; at = at.parentElement) {
    const color = getComputedStyle(at).backgroundColor;
    if (channels(color).alpha === 1) return color;
  }
  return "rgb(255, 255, 255)";
};

/** Each visible text with its contrast, as WCAG 2 defines it. */
probes.contrasts = () => {
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    const text = texts.currentNode.textContent.trim();
    if (text === "" || !element.checkVisibility() || element.closest("title, desc, script, noscript")) continue;
    const style = getComputedStyle(element);
    const ink = element.closest("svg") ? style.fill : style.color;
    const [light, dark] = [luminance(channels(ink)), luminance(channels(paper(element)))].sort((a, b) => b - a);
    found.push({ text, contrast: (light + 0.05) / (dark + 0.05) });
  }
  return found;
};

/** What sticks out of a viewport to the right, but what is there for screen readers and the keyboard only. */
probes.sticksOut = () => {
  const wide = document.documentElement.clientWidth;
  const out = [...document.body.querySelectorAll("*")].filter((element) => element.checkVisibility());
  return out.filter((element) => element.getBoundingClientRect().right > wide + 0.5).map((element) => element.outerHTML);
};

/** Texts of the drawing that run into a box that is not theirs, or out of the one that is. */
probes.collisions = () => {
  const boxes = [...document.querySelectorAll("#machine .box")];
  const rects = boxes.map((box) => [box, box.querySelector("rect").getBoundingClientRect()]);
  const found = [];
  for (const text of document.querySelectorAll("#machine text")) {
    const at = text.getBoundingClientRect();
    if (at.width === 0) continue;
    for (const [box, rect] of rects) {
      const apart = at.right < rect.left || at.left > rect.right || at.bottom < rect.top || at.top > rect.bottom;
      const inside = at.left >= rect.left && at.right <= rect.right;
      if (box.contains(text) ? !inside : !apart) found.push(text.textContent);
    }
  }
  return found;
};

/** Who has the focus, and whether that can be seen. */
probes.focus = () => {
  const element = document.activeElement;
  const style = getComputedStyle(element);
  return {
    name: element.id || element.value || element.textContent.trim(),
    kind: element.localName,
    column: element.closest("th")?.textContent ?? null,
    seen: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2,
  };
};
