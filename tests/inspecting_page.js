// Looks for faults of layout in the page as it is shown now. Returns one line for each fault.
// axe-core checks the contrast of texts, except of those in pictures (SVG), which are checked here.
() => {
  const faults = [];
  const shown = (element) => element.checkVisibility({ visibilityProperty: true, opacityProperty: true });
  const short = (text) => text.trim().replace(/\s+/g, " ").slice(0, 40);
  const overlap = (a, b, by = 1) =>
    Math.min(a.right, b.right) - Math.max(a.left, b.left) > by && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > by;
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > width) faults.push(`the page is ${document.documentElement.scrollWidth} wide`);

  // Colours.
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const known = new Map();
  const rgba = (css) => {
    if (!known.has(css)) {
      canvas.clearRect(0, 0, 1, 1);
      canvas.fillStyle = css;
      canvas.fillRect(0, 0, 1, 1);
      known.set(css, [...canvas.getImageData(0, 0, 1, 1).data]);
    }
    return known.get(css);
  };
  const over = (top, below) => [0, 1, 2].map((i) => (top[i] * top[3]) / 255 + below[i] * (1 - top[3] / 255));
  const luminance = (c) => {
    const [r, g, b] = c.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) {
      const found = rgba(getComputedStyle(at).backgroundColor);
      if (found[3]) layers.push(found);
      if (found[3] === 255) break;
    }
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };

  // Texts of the page: cut, outside of the page, or in a picture and of too little contrast.
  const scrolls = (element) => element.closest(".scroll, .wide, .side-text, [role=listbox]");
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!short(node.data) || ["SCRIPT", "STYLE", "TITLE", "TEXTAREA", "OPTION"].includes(element.tagName) || !shown(element)) continue;
    if (element.closest(".sr-only, .visually-hidden, [aria-hidden=true], .heatmaplayer, .hoverlayer, .textpoint, .modebar")) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const box = range.getBoundingClientRect();
    if (box.width < 1 || box.height < 1) continue;
    const style = getComputedStyle(element);
    if (!scrolls(element)) {
      if (box.left < -1 || box.right > width + 1) faults.push(`outside of the page: ${short(node.data)}`);
      for (let at = element; at && at !== document.body; at = at.parentElement) {
        if (!["hidden", "clip"].includes(getComputedStyle(at).overflowX) || at.tagName === "svg") continue;
        const room = at.getBoundingClientRect();
        if (box.right > room.right + 1 || box.left < room.left - 1) faults.push(`cut: ${short(node.data)}`);
      }
    }
    if (!(element instanceof SVGElement)) continue;
    const below = background(element);
    const ink = over(rgba(style.fill), below);
    const [low, high] = [luminance(below), luminance(ink)].sort((a, b) => a - b);
    const size = parseFloat(style.fontSize);
    const isLarge = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const contrast = (high + 0.05) / (low + 0.05);
    if (contrast < (isLarge ? 3 : 4.5)) faults.push(`contrast ${contrast.toFixed(2)}: ${short(node.data)}`);
  }

  // Labels of plots, which Plotly places one by one.
  for (const plot of document.querySelectorAll(".js-plotly-plot")) {
    if (!shown(plot)) continue;
    const texts = [...plot.querySelectorAll(".xtick text, .ytick text, .g-xtitle text, .g-ytitle text, .legendtext, .cbtitle text")]
      .filter(shown).map((text) => [short(text.textContent), text.getBoundingClientRect()]);
    const room = plot.getBoundingClientRect();
    const isCut = (box) => box.left < room.left - 1 || box.right > room.right + 1 || box.top < room.top - 1 || box.bottom > room.bottom + 1;
    for (const [a, box] of texts) if (isCut(box)) faults.push(`cut by its plot: ${a}`);
    texts.forEach(([a, box], i) => texts.slice(i + 1).forEach(([b, other]) => {
      if (overlap(box, other, 2)) faults.push(`labels of a plot overlap: ${a} | ${b}`);
    }));
  }

  // Labels of graphs, and their edges.
  for (const svg of document.querySelectorAll(".graph > svg")) {
    if (!shown(svg)) continue;
    const texts = [...svg.querySelectorAll("text")].map((text) => [text.textContent, text.getBoundingClientRect()]);
    texts.forEach(([a, box], i) => texts.slice(i + 1).forEach(([b, other]) => {
      if (overlap(box, other)) faults.push(`labels overlap: ${a} | ${b}`);
    }));
    for (const edge of svg.querySelectorAll("polyline")) {
      const matrix = edge.getScreenCTM(), length = edge.getTotalLength();
      for (let at = 0; at <= length; at += 3) {
        const { x, y } = edge.getPointAtLength(at).matrixTransform(matrix);
        const hit = texts.find(([, box]) => x > box.left && x < box.right && y > box.top && y < box.bottom);
        if (hit) { faults.push(`an edge crosses ${hit[0]}`); break; }
      }
    }
  }
  return [...new Set(faults)];
}
