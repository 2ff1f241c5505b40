// Images of the next message: chosen, dropped or pasted, and made smaller where that loses nothing that a model reads.

import { $, announce, h, icon } from "./dom.js";
import { state } from "./state.js";

const MAX_SIDE = 2048; // in pixels
const MAX_BYTES = 2_000_000; // a larger file is encoded again
const PLAIN = ["image/png", "image/jpeg", "image/webp"];

let images = []; // data URLs

const dataUrl = (blob) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });

async function prepare(file) {
  const bitmap = await createImageBitmap(file).catch(() => {
    throw new Error(`${file.name || "The file"} is not an image that this browser can read.`);
  });
  const scale = Math.min(1, MAX_SIDE / Math.max(bitmap.width, bitmap.height));
  if (scale === 1 && file.size <= MAX_BYTES && PLAIN.includes(file.type)) return dataUrl(file);
  const canvas = h("canvas", { width: Math.round(bitmap.width * scale), height: Math.round(bitmap.height * scale) });
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.92);
}

function render() {
  $("attachments").hidden = !images.length;
  $("attachments").replaceChildren(...images.map((image, i) =>
    h("li", {},
      h("img", { src: image, alt: `Image ${i + 1}` }),
      h("button", { type: "button", "aria-label": `Remove image ${i + 1}`, onclick: () => setImages(images.toSpliced(i, 1)) }, icon("close")),
    )));
}

export function setImages(next) {
  images = next;
  render();
}

export function takeImages() {
  const taken = images;
  setImages([]);
  return taken;
}

export const hasImages = () => images.length > 0;

/** Add files to the next message; `report` gets the sentence of an error. */
export async function addFiles(files, report) {
  const pictures = [...files].filter((file) => file.type.startsWith("image/"));
  if (!pictures.length) return;
  if (!state.model?.images) return report(`${state.model?.name ?? "The model"} does not accept images.`);
  for (const file of pictures) {
    try {
      setImages([...images, await prepare(file)]);
      announce("Image attached");
    } catch (error) {
      report(error.message);
    }
  }
}

/** Accept images by drop and paste anywhere on the page, and by the button. */
export function connectImages(report) {
  $("attach").addEventListener("click", () => $("attach-file").click());
  $("attach-file").addEventListener("change", () => {
    addFiles($("attach-file").files, report);
    $("attach-file").value = "";
  });
  $("input").addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) {
      event.preventDefault();
      addFiles(event.clipboardData.files, report);
    }
  });
  const holds = (event) => event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!holds(event)) return;
    event.preventDefault();
    $("composer").classList.add("drop");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) $("composer").classList.remove("drop");
  });
  document.addEventListener("drop", (event) => {
    if (!holds(event)) return;
    event.preventDefault();
    $("composer").classList.remove("drop");
    addFiles(event.dataTransfer.files, report);
  });
}
