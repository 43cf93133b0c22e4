// The page: photos come in, prompts are drawn, and the backend's masks are shown over the photo of each model.
// backend.js is one of two: server_backend.js asks the server, browser_backend.js runs the model here.
import { backend } from "./backend.js";

const MASK = [0, 114, 178], OPACITY = 0.55; // as on the pictures of distill predict
const BOX = "rgb(255,196,0)", ON = "rgb(0,200,83)", OFF = "rgb(213,0,60)";
const LEAST_DRAG = 4; // pixels of the screen: less is a click

const page = Object.fromEntries(
  ["file", "undo", "clear", "message", "panels", "agreement", "panel"].map((id) => [id, document.getElementById(id)]),
);
let panels = [], photo = null, prompts = [], drag = null, round = 0;

function say(text, isError = false) {
  page.message.textContent = text;
  page.message.classList.toggle("error", isError);
}

function addPanel(title) {
  const figure = page.panel.content.cloneNode(true).firstElementChild;
  figure.querySelector(".title").textContent = title;
  const canvas = figure.querySelector("canvas");
  const panel = { canvas, numbers: figure.querySelector(".numbers"), mask: null };
  canvas.addEventListener("pointerdown", (event) => press(event, canvas));
  canvas.addEventListener("pointermove", (event) => move(event, canvas));
  canvas.addEventListener("pointerup", (event) => release(event, canvas));
  canvas.addEventListener("pointercancel", () => { drag = null; drawAll(); });
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  page.panels.append(figure);
  return panel;
}

// Where the pointer is, in pixels of the photo. The canvas keeps its shape inside its box, from the top left corner.
function place(event, canvas) {
  const box = canvas.getBoundingClientRect();
  const scale = Math.max(canvas.width / box.width, canvas.height / box.height);
  const clamp = (value, most) => Math.min(Math.max(value, 0), most);
  return [clamp((event.clientX - box.left) * scale, canvas.width), clamp((event.clientY - box.top) * scale, canvas.height)];
}

function press(event, canvas) {
  if (!photo || event.button > 2) return;
  canvas.setPointerCapture(event.pointerId);
  const isOff = event.button === 2 || event.shiftKey || event.altKey;
  drag = { from: place(event, canvas), to: place(event, canvas), at: [event.clientX, event.clientY], isOff };
}

function move(event, canvas) {
  if (!drag) return;
  drag.to = place(event, canvas);
  drag.isBox = !drag.isOff && Math.hypot(event.clientX - drag.at[0], event.clientY - drag.at[1]) > LEAST_DRAG;
  drawAll();
}

function release(event, canvas) {
  if (!drag) return;
  move(event, canvas);
  const { from, to, isBox, isOff } = drag;
  drag = null;
  if (isBox) prompts.push({ box: boxOf(from, to) });
  else prompts.push({ point: from, label: isOff ? 0 : 1 });
  ask();
}

const boxOf = ([x, y], [u, v]) => [Math.min(x, u), Math.min(y, v), Math.max(x, u), Math.max(y, v)];

// A later box takes the place of an earlier one.
function prompt() {
  const box = prompts.filter((one) => one.box).at(-1)?.box ?? null;
  const clicks = prompts.filter((one) => one.point);
  return { box, points: clicks.map((one) => one.point), labels: clicks.map((one) => one.label) };
}

async function ask() {
  const asked = prompt(), mine = ++round;
  page.undo.disabled = page.clear.disabled = !prompts.length;
  if (!prompts.length) {
    for (const panel of panels) panel.mask = null;
    showNumbers(null);
    drawAll();
    return;
  }
  drawAll();
  say("Predicting");
  try {
    const found = await backend.predict(photo, asked);
    if (mine !== round) return; // a later prompt is on its way
    found.answers.forEach((answer, i) => { panels[i].mask = answer.mask; });
    showNumbers(found);
    say("");
  } catch (error) {
    if (mine === round) say(error.message, true);
  }
  drawAll();
}

function showNumbers(found) {
  panels.forEach((panel, i) => {
    const texts = [`embedding ${photo.milliseconds[i].toFixed(0)} ms`];
    if (found) {
      const answer = found.answers[i];
      texts.push(`mask ${answer.milliseconds.toFixed(0)} ms`, `predicted IoU ${answer.predicted_iou.toFixed(2)}`);
    }
    panel.numbers.textContent = texts.join(", ");
  });
  const iou = found?.iou ?? null;
  page.agreement.textContent = iou === null ? "" : `IoU of the two masks: ${iou.toFixed(3)}`;
  document.body.dataset.round = found ? round : ""; // what is shown belongs to this prompt
}

function drawAll() {
  if (photo) panels.forEach(draw);
}

function draw(panel) {
  const { canvas, mask } = panel, pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.drawImage(photo.bitmap, 0, 0);
  if (mask) paint(pen, mask);
  const unit = Math.max(canvas.width, canvas.height) / 160, asked = prompt();
  pen.lineWidth = unit / 2;
  const box = drag?.isBox ? boxOf(drag.from, drag.to) : asked.box;
  if (box) {
    pen.strokeStyle = BOX;
    pen.strokeRect(box[0], box[1], box[2] - box[0], box[3] - box[1]);
  }
  asked.points.forEach(([x, y], i) => {
    pen.beginPath();
    pen.arc(x, y, unit, 0, 2 * Math.PI);
    pen.fillStyle = asked.labels[i] ? ON : OFF;
    pen.strokeStyle = "white";
    pen.fill();
    pen.stroke();
  });
}

function paint(pen, mask) {
  const image = pen.getImageData(0, 0, photo.width, photo.height), pixels = image.data;
  for (let i = 0; i < mask.length; i++) {
    if (mask[i]) {
      for (let c = 0; c < 3; c++) pixels[4 * i + c] += OPACITY * (MASK[c] - pixels[4 * i + c]);
    }
  }
  pen.putImageData(image, 0, 0);
}

// Show a photo that the backend has embedded, or will embed from these bytes.
async function show(blob, known = null) {
  say("Embedding the photo");
  try {
    const bitmap = await createImageBitmap(blob); // upright, as the server reads it
    const embedded = known ?? await backend.addPhoto(blob, bitmap);
    photo = { ...embedded, blob, bitmap };
    prompts = [];
    for (const panel of panels) {
      panel.mask = null;
      panel.canvas.width = photo.width;
      panel.canvas.height = photo.height;
    }
    await ask();
    document.body.dataset.photo = photo.id;
    say("");
  } catch (error) {
    say(error.message, true);
  }
}

page.undo.addEventListener("click", () => { prompts.pop(); ask(); });
page.clear.addEventListener("click", () => { prompts = []; ask(); });
page.file.addEventListener("change", () => { if (page.file.files[0]) show(page.file.files[0]); page.file.value = ""; });
document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
document.addEventListener("dragleave", () => document.body.classList.remove("dropping"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  const file = event.dataTransfer.files[0];
  if (file) show(file);
});

try {
  const start = await backend.start(say);
  panels = start.models.map(addPanel);
  await show(start.blob, start.photo);
} catch (error) {
  say(error.message, true);
}
