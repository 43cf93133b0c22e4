// The model runs here, by onnxruntime-web (WebAssembly). Everything comes from the folder of this page.
import * as ort from "./ort/ort.wasm.min.mjs";

ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
ort.env.wasm.numThreads = 1; // more need a page that is isolated from all others
const NO_POINT = -1, BOX_LOW = 2, BOX_HIGH = 3; // labels of segment-anything's ONNX decoder

let settings, encoder, decoder;

async function load(name) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name} is missing: write the folder again by distill demo MODEL --static`);
  return response;
}

async function session(name) {
  const model = new Uint8Array(await (await load(name)).arrayBuffer());
  return ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
}

// Pillow's bilinear resampling of one direction: a triangle over all pixels that fall into the new one.
function weights(length, wanted) {
  const scale = length / wanted, support = Math.max(scale, 1);
  return Array.from({ length: wanted }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - support + 0.5), 0), last = Math.min(Math.trunc(centre + support + 0.5), length);
    const of = Float64Array.from({ length: last - first }, (_, k) => Math.max(0, 1 - Math.abs((first + k - centre + 0.5) / support)));
    const sum = of.reduce((a, b) => a + b, 0);
    return { first, of: of.map((value) => value / sum) };
  });
}

// RGBA (height, width) -> RGB (rows, columns), rounded after each direction as Pillow does.
function resize(pixels, width, height, columns, rows) {
  const across = new Uint8ClampedArray(height * columns * 3), down = new Uint8ClampedArray(rows * columns * 3);
  weights(width, columns).forEach(({ first, of }, x) => {
    for (let y = 0; y < height; y++) {
      for (let c = 0; c < 3; c++) {
        let sum = 0;
        for (let k = 0; k < of.length; k++) sum += of[k] * pixels[4 * (y * width + first + k) + c];
        across[3 * (y * columns + x) + c] = Math.floor(sum + 0.5);
      }
    }
  });
  weights(height, rows).forEach(({ first, of }, y) => {
    for (let x = 0; x < 3 * columns; x++) {
      let sum = 0;
      for (let k = 0; k < of.length; k++) sum += of[k] * across[3 * columns * (first + k) + x];
      down[3 * columns * y + x] = Math.floor(sum + 0.5);
    }
  });
  return down;
}

const resized = (width, height, side) =>
  [width, height].map((length) => Math.max(1, Math.floor((length * side) / Math.max(width, height) + 0.5)));

// A photo -> normalised pixels (1, 3, S, S), zeros to the right of it and below.
function letterbox(bitmap) {
  const { width, height } = bitmap, side = settings.image_size;
  const pen = new OffscreenCanvas(width, height).getContext("2d");
  pen.drawImage(bitmap, 0, 0);
  const [columns, rows] = resized(width, height, side);
  const pixels = resize(pen.getImageData(0, 0, width, height).data, width, height, columns, rows);
  const input = new Float32Array(3 * side * side);
  for (let c = 0; c < 3; c++) {
    for (let y = 0; y < rows; y++) {
      for (let x = 0; x < columns; x++) {
        const value = pixels[3 * (y * columns + x) + c];
        input[(c * side + y) * side + x] = (value - settings.pixel_mean[c]) / settings.pixel_std[c];
      }
    }
  }
  return new ort.Tensor("float32", input, [1, 3, side, side]);
}

// A prompt in the photo's pixels -> points and labels in the prompt frame, as segment-anything's decoder takes them.
function pointsOf(photo, { box, points, labels }) {
  const [columns, rows] = resized(photo.width, photo.height, settings.prompt_size);
  const places = [...points], kinds = [...labels];
  if (box) {
    places.push([box[0], box[1]], [box[2], box[3]]);
    kinds.push(BOX_LOW, BOX_HIGH);
  }
  const coordinates = places.flatMap(([x, y]) => [(x * columns) / photo.width, (y * rows) / photo.height]);
  if (!box) {
    coordinates.push(0, 0);
    kinds.push(NO_POINT);
  }
  return {
    point_coords: new ort.Tensor("float32", Float32Array.from(coordinates), [1, kinds.length, 2]),
    point_labels: new ort.Tensor("float32", Float32Array.from(kinds), [1, kinds.length]),
  };
}

// Where a place of a longer or shorter line lies between two of the first `used` places of a line of `length`.
function between(length, wanted, used) {
  return Array.from({ length: wanted }, (_, i) => {
    const at = Math.max(((i + 0.5) * length) / wanted - 0.5, 0), low = Math.min(Math.trunc(at), used - 1);
    return { low, high: Math.min(low + 1, used - 1), share: at - low };
  });
}

// Bilinear, as torch's interpolate without aligned corners: (height, width) -> the first rows and columns of a larger map.
function enlarge(values, width, xs, ys) {
  const out = new Float32Array(xs.length * ys.length);
  ys.forEach((y, row) => {
    xs.forEach((x, column) => {
      const above = values[y.low * width + x.low] * (1 - x.share) + values[y.low * width + x.high] * x.share;
      const below = values[y.high * width + x.low] * (1 - x.share) + values[y.high * width + x.high] * x.share;
      out[row * xs.length + column] = above * (1 - y.share) + below * y.share;
    });
  });
  return out;
}

// Low-res logits -> a mask of the photo's size: enlarged to the prompt frame, cut to the photo, resized to its pixels.
function maskOf(logits, photo) {
  const low = settings.low_res_size, side = settings.prompt_size;
  const [columns, rows] = resized(photo.width, photo.height, side), all = between(low, side, low);
  const framed = enlarge(logits, low, all.slice(0, columns), all.slice(0, rows)); // (rows, columns)
  const xs = between(columns, photo.width, columns), ys = between(rows, photo.height, rows);
  return Uint8Array.from(enlarge(framed, columns, xs, ys), (value) => (value > 0 ? 1 : 0));
}

export const backend = {
  async start(say) {
    say("Loading the model");
    settings = await (await load("settings.json")).json();
    [encoder, decoder] = [await session(settings.encoder), await session(settings.decoder)];
    return { models: [settings.title], photo: null, blob: await (await load("photo")).blob() };
  },

  async addPhoto(blob, bitmap) {
    const begin = performance.now();
    const { image_embeddings } = await encoder.run({ [encoder.inputNames[0]]: letterbox(bitmap) });
    const { width, height } = bitmap;
    return { id: String(begin), width, height, milliseconds: [performance.now() - begin], embedding: image_embeddings };
  },

  async predict(photo, asked) {
    const begin = performance.now(), low = settings.low_res_size;
    const found = await decoder.run({
      image_embeddings: photo.embedding,
      ...pointsOf(photo, asked),
      mask_input: new ort.Tensor("float32", new Float32Array(low * low), [1, 1, low, low]),
      has_mask_input: new ort.Tensor("float32", new Float32Array(1), [1]),
    });
    const ious = found.iou_predictions.data; // of the single mask, then of three for ambiguous prompts
    const isAmbiguous = !asked.box && asked.points.length === 1;
    const best = isAmbiguous ? [1, 2, 3].reduce((a, b) => (ious[b] > ious[a] ? b : a)) : 0;
    const mask = maskOf(found.low_res_masks.data.subarray(best * low * low, (best + 1) * low * low), photo);
    const answer = { mask, predicted_iou: ious[best], milliseconds: performance.now() - begin };
    return { answers: [answer], iou: null };
  },
};
