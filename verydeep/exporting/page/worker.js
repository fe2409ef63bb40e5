// The model, beside the page, so that the page answers meanwhile. It is sent photos, and sends what it did.

import * as ort from "./ort.wasm.bundle.min.mjs";
import { prepared } from "./resize.js";

// more than one thread needs memory that threads share, which browsers give to isolated pages alone
const threads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
ort.env.wasm.numThreads = threads;
let about; // page.json
let session;

// Asked for anew, though the browser may have it: of two versions only one file might be an old one.
async function got(name) {
  const answer = await fetch(name, { cache: "no-cache" });
  if (!answer.ok) throw new Error(`${name} cannot be had: ${answer.status} ${answer.statusText}`);
  return answer;
}

// The model's bytes, told of as they come. Some servers unpack what ends in .gz, and say so to the browser.
async function model() {
  let count = 0;
  const counted = new TransformStream({
    transform(chunk, stream) {
      count += chunk.length;
      postMessage({ share: Math.min(1, count / about.size_bytes) });
      stream.enqueue(chunk);
    },
  });
  const answer = await got("model.onnx.gz");
  let bytes = answer.body.pipeThrough(counted);
  if (answer.headers.get("content-encoding") !== "gzip") bytes = bytes.pipeThrough(new DecompressionStream("gzip"));
  return new Response(bytes).arrayBuffer();
}

// Whether page.json tells of this model. Browsers hash, and keep pages, in secure contexts alone.
async function matches(bytes) {
  if (!self.isSecureContext) return true;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return about.sha256 === [...digest].map((one) => one.toString(16).padStart(2, "0")).join("");
}

async function load() {
  const began = performance.now();
  about = await (await got("page.json")).json();
  const bytes = await model();
  if (!(await matches(bytes))) throw new Error("Its names and its model are of two versions; load the page again.");
  const came = performance.now();
  session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  const { crop_size: side, mean } = about.preprocess;
  if (side) await scores(new Uint8Array(side * side * mean.length), side, side, mean.length); // browsers compile what is used
  return { about, threads, fetching: came - began, opening: performance.now() - came };
}

async function scores(bytes, height, width, channels) {
  const pixels = new ort.Tensor("uint8", bytes, [1, height, width, channels]);
  return (await session.run({ pixels }, ["scores"])).scores.data;
}

// Its colours as the file has them, upright; what is transparent is black.
async function decoded(file) {
  const given = { colorSpaceConversion: "none", premultiplyAlpha: "none", imageOrientation: "from-image" };
  const bitmap = await createImageBitmap(file, given).catch(() => {
    throw new Error("This browser cannot read it as an image; give a JPEG, PNG or WebP.");
  });
  const { width, height } = bitmap;
  const pen = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  pen.drawImage(bitmap, 0, 0);
  bitmap.close();
  return pen.getImageData(0, 0, width, height);
}

async function answered(file) {
  const began = performance.now();
  const { data, width, height, channels } = prepared(await decoded(file), about.preprocess);
  const ready = performance.now();
  const found = await scores(new Uint8Array(data.buffer), height, width, channels);
  return { scores: [...found], preparing: ready - began, computing: performance.now() - ready };
}

const loaded = load();
const told = (work, more = {}) => work.then((done) => postMessage({ ...done, ...more }), (error) => postMessage({ error: error.message, ...more }));
told(loaded);
onmessage = ({ data: { file, number } }) => told(loaded.then(() => answered(file)), { number });
