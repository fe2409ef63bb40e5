// The page: a photo goes to the worker, which has the model, and what it answers is drawn.

import { $, firstPlace, guess, make, percent, shown, tell } from "./photo.js";

const MOST = 5; // names
const seconds = (milliseconds) => `${(milliseconds / 1000).toFixed(2)} s`;
let about = null; // page.json, once the model is loaded
let last = 0; // photos so far: who gives another one no longer waits for the one before

// Offline the page goes on where browsers keep one: on https, and on this machine.
async function keep() {
  const keeper = navigator.serviceWorker;
  if (!keeper) return;
  await keeper.register("offline.js");
  await keeper.ready;
  // the worker and its model are to come through it; of a page that was reloaded past it, it never takes charge
  const taken = new Promise((done) => keeper.addEventListener("controllerchange", done, { once: true }));
  if (!keeper.controller) await Promise.race([taken, new Promise((done) => setTimeout(done, 1000))]);
}

function probabilities(scores) {
  if (about.thresholds.length) return scores.map((score) => 1 / (1 + Math.exp(-score)));
  const most = Math.max(...scores);
  const shares = scores.map((score) => Math.exp(score - most));
  const sum = shares.reduce((a, b) => a + b, 0);
  return shares.map((share) => share / sum);
}

// As Python's `Answer`: the names, and whether it is sure of them.
function answer(scores) {
  const chances = probabilities(scores);
  const { labels, thresholds, threshold, least_mean: least } = about;
  const order = labels.map((label, at) => ({ label, probability: chances[at], least: thresholds[at] ?? threshold ?? 0 }));
  order.sort((a, b) => b.probability - a.probability);
  const reached = order.filter((one) => one.probability >= one.least);
  const mean = scores.reduce((a, b) => a + b, 0) / scores.length;
  const sure = reached.length > 0 && (least === null || mean >= least);
  return { sure, guesses: sure && thresholds.length ? reached : order.slice(0, MOST) };
}

function draw({ scores, preparing, computing }) {
  const { sure, guesses } = answer(scores);
  const [best] = guesses;
  $("guesses").replaceChildren(
    ...guesses.map(({ label, probability }, rank) =>
      make("li", { className: sure && (about.thresholds.length || !rank) ? "guess sure" : "guess" }, ...guess(label, probability)),
    ),
  );
  $("how").replaceChildren(
    ...(sure ? [] : [make("strong", { textContent: "Not sure. " }), "Probably none of what it knows. "]),
    `The photo took ${seconds(preparing + computing)}: ${seconds(preparing)} to decode and resize, ${seconds(computing)} in the network.`,
  );
  $("answer").hidden = false;
  $("status").textContent = `${sure ? "" : "Not sure: "}${best.label}, ${percent(best.probability)}.`;
}

async function loaded({ about: said, threads, fetching, opening }) {
  about = said;
  // not where the browser keeps nothing, has no room, or was told not to
  const kept = self.caches && (await caches.match("model.onnx.gz").catch(() => {}));
  $("loading").hidden = true;
  $("about").textContent = `${about.network} that knows ${about.labels.length.toLocaleString("en")} names. Your photos stay in this browser.`;
  $("foot").textContent =
    `The model (${(about.size_bytes / 1e6).toFixed(1)} MB) took ${seconds(fetching)} to come and ${seconds(opening)} to open; ` +
    `it computes in ${threads} thread${threads > 1 ? "s" : ""}. ` +
    `${kept ? "It is kept in this browser, and works without a network from now on. " : ""}Made by ${about.producer}. ` +
    `Licences: weights ${about.licence || "not told"}; ONNX Runtime MIT.`;
}

const worker = keep().catch(() => {}).then(() => {
  const made = new Worker("worker.js", { type: "module" });
  made.onerror = () => tell(new Error("The model cannot be run; give this page a browser of today, and a folder that is whole."));
  made.onmessage = ({ data }) => {
    if (data.share !== undefined) document.querySelector("progress").value = data.share;
    else if (data.error !== undefined && (data.number ?? last) === last) {
      tell(new Error(data.error));
      if (!about) $("about").textContent = "The model could not be loaded.";
      $("loading").hidden = true;
    } else if (data.about) loaded(data);
    else if (data.number === last && data.scores) draw(data);
  };
  return made;
});

async function look(file) {
  last += 1;
  const number = last;
  tell();
  shown($("photo"), file);
  $("one").classList.add("small");
  $("status").textContent = about ? "Looking." : "Looking, as soon as the model is loaded.";
  (await worker).postMessage({ file, number });
}

$("about").textContent = "The model is being loaded.";
$("loading").hidden = false;
firstPlace("one", look);
