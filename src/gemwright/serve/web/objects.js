// Boxes and masks of PaliGemma's replies, drawn over their image. The server parses the tags and decodes the masks.

import { json } from "./api.js";
import { h, svg } from "./dom.js";
import { state } from "./state.js";

const COLORS = 6; // c0 to c5 in app.css
let masks = 0;

/** Return the objects of a reply with location tags, else null. */
export async function findObjects(text) {
  if (!/<loc\d{4}>/.test(text)) return null;
  const { objects } = await json("page/objects", { body: { model: state.model?.name, text } });
  return objects.length ? objects : null;
}

function drawMask(object, area, group) {
  const id = `mask${masks++}`;
  const image = svg("image", { ...area, href: object.mask, preserveAspectRatio: "none" });
  group.append(svg("mask", { id }, image), svg("rect", { ...area, class: "mask", mask: `url(#${id})` }));
}

/** Return a figure: the image, its boxes and masks, and a list of the objects. */
export function drawObjects(image, objects) {
  const picture = h("img", { src: image, alt: `The image with ${objects.length} marked objects` });
  const layer = svg("svg", { viewBox: "0 0 1000 1000", preserveAspectRatio: "none", "aria-hidden": "true" });
  const labels = h("div", { class: "labels", "aria-hidden": "true" });
  const list = h("ol", { class: "objects" });
  objects.forEach((object, i) => {
    const [top, left, bottom, right] = object.box;
    const area = { x: 1000 * left, y: 1000 * top, width: 1000 * (right - left), height: 1000 * (bottom - top) };
    const group = svg("g", { class: `c${i % COLORS}` });
    if (object.mask) drawMask(object, area, group);
    group.append(svg("rect", { ...area, class: "box" }));
    layer.append(group);
    const label = h("span", { class: `c${i % COLORS}` }, object.label || String(i + 1));
    label.style.insetBlockStart = `${100 * top}%`;
    label.style.insetInlineStart = `${100 * left}%`;
    labels.append(label);
    const item = h("li", { class: `c${i % COLORS}` }, object.label || "Object");
    item.addEventListener("mouseenter", () => layer.replaceChildren(...layer.children, group)); // draw it on top
    list.append(item);
  });
  return h("figure", { class: "found" }, h("div", { class: "overlay" }, picture, layer, labels), h("figcaption", {}, list));
}
