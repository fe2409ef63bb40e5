// The page: photos go to the API as a program's would, and what comes back is drawn.

import { $, firstPlace, guess, make, percent, place, shown, tell } from "./photo.js";

const wait = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));
let token = sessionStorage.getItem("token");
let photo = null; // the File that is looked at
let model = null;

// The answer to a request; where the server is busy, it is asked again.
async function ask(path, photos) {
  const options = { headers: token ? { authorization: `Bearer ${token}` } : {} };
  if (photos) {
    options.method = "POST";
    options.body = new FormData();
    for (const [name, file] of Object.entries(photos)) options.body.append(name, file);
  }
  for (let tries = 0; ; tries += 1) {
    const answer = await fetch(path, options).catch(() => {
      throw new Error("The server cannot be reached; start it again.");
    });
    if (answer.ok) return answer;
    const words = (await answer.json().catch(() => ({}))).error || answer.statusText;
    if ([429, 503].includes(answer.status) && (!model || tries < 5)) {
      await wait(Number(answer.headers.get("retry-after")) || 1);
      continue;
    }
    if (answer.status === 401) $("login").hidden = false;
    throw new Error(words);
  }
}

const asked = async (path, photos) => (await ask(path, photos)).json();

// One photo

async function look(file) {
  tell();
  photo = file;
  const current = () => photo === file;
  $("status").textContent = "Looking.";
  $("one").classList.add("small");
  $("channels").replaceChildren();
  try {
    if (model.classes) {
      const [answer, seen] = await Promise.all([
        asked("v1/classify", { file }),
        asked("v1/explain?form=page&top=5", { file }),
      ]);
      if (!current()) return;
      drawAnswer(file, answer, seen);
    }
    if (model.index !== null) await drawMatches(file);
    const blocks = await asked("v1/channels?strongest=8", { file });
    if (!current()) return;
    $("blocks-rows").replaceChildren(...blocks.map(block));
    $("blocks").hidden = false;
    $("layer").disabled = false;
    if (!model.classes) $("status").textContent = "Done.";
  } catch (error) {
    if (current()) tell(error);
  }
}

function drawAnswer(file, answer, seen) {
  const maps = new Map(seen.maps.map((one) => [one.id, one.picture])); // two classes may have one name
  const [best] = answer.predictions;
  const buttons = answer.predictions.map(({ id, label, probability }, rank) => {
    const button = make("button", { type: "button", className: "guess", disabled: !maps.has(id) }, ...guess(label, probability));
    if (answer.sure && (model.several || !rank)) button.classList.add("sure");
    button.addEventListener("click", () => {
      for (const one of buttons) one.ariaPressed = String(one === button);
      $("heat").src = maps.get(id);
      $("heat").alt = `where the network sees ${label}`;
      $("heat").hidden = $("mix").hidden = false;
    });
    return button;
  });
  shown($("photo"), file);
  $("guesses").replaceChildren(...buttons.map((button) => make("li", {}, button)));
  buttons.find((button) => !button.disabled)?.click();
  $("how").replaceChildren(
    ...(answer.sure ? [] : [make("strong", { textContent: "Not sure. " }), "Probably none of what it knows. "]),
    "Choose a name to see what speaks for it. ",
    make("small", { textContent: `${answer.engine} ${answer.precision}, ${seen.method}` }),
  );
  $("answer").hidden = false;
  $("status").textContent = `${answer.sure ? "" : "Not sure: "}${best.label}, ${percent(best.probability)}.`;
}

async function drawMatches(file) {
  const { matches } = await asked("v1/search?top=12", { file });
  const tiles = matches.map((match) => {
    const name = match.path.split(/[\\/]/).pop();
    const image = make("img", { alt: name });
    ask(`v1/photo/${match.row}`).then(async (small) => shown(image, await small.blob()), () => {});
    const words = make("figcaption", {}, make("b", { textContent: match.cosine.toFixed(3) }), ` ${name}`);
    return make("figure", { title: match.path }, image, words);
  });
  if (photo !== file) return;
  $("matches-words").textContent = `The nearest of ${model.index.toLocaleString("en")} photos, with the cosine of their features.`;
  $("matches-tiles").replaceChildren(...tiles);
  $("matches").hidden = false;
}

function block({ layer, shape, sees, channels }) {
  const units = shape.length > 1 ? `${shape[0]} maps of ${shape[2]} × ${shape[1]} units` : `${shape[0]} units`;
  const tiles = channels.map((one) =>
    make(
      "figure",
      {},
      make("img", { className: "pixels", alt: `channel ${one.index} of ${layer}`, src: one.picture }),
      make("figcaption", {}, make("b", { textContent: one.index }), make("span", { textContent: one.mean.toPrecision(3) })),
    ),
  );
  const words = make("p", {}, units, make("br"), `each sees ${sees} pixel${sees > 1 ? "s" : ""}`);
  return make("div", { className: "block" }, make("div", {}, make("h3", { textContent: layer }), words), make("div", { className: "maps" }, ...tiles));
}

// The network

async function drawNetwork() {
  for (const kind of ["broad", "narrow"]) {
    const text = await (await ask(`v1/network?narrow=${kind === "narrow"}`)).text();
    const figure = document.querySelector(`.figure.${kind}`);
    figure.replaceChildren(document.importNode(new DOMParser().parseFromString(text, "image/svg+xml").documentElement, true));
    figure.addEventListener("click", (event) => {
      const layer = event.target.closest("[data-layer]")?.dataset.layer;
      if (model.layers.includes(layer)) drawChannels(layer);
    });
  }
  $("layer").append(...model.layers.map((name) => make("option", { textContent: name, value: name })));
  $("layer").addEventListener("change", () => $("layer").value && drawChannels($("layer").value));
  $("network").hidden = false;
}

async function drawChannels(layer) {
  $("layer").value = layer;
  for (const part of document.querySelectorAll(".figure [data-layer]")) part.classList.toggle("chosen", part.dataset.layer === layer);
  if (!photo) {
    $("channels").textContent = "Give it a photo first, at the top of the page.";
    return;
  }
  $("channels").classList.add("busy");
  const file = photo;
  try {
    const [one] = await asked(`v1/channels?strongest=16&layer=${layer}`, { file });
    if ($("layer").value === layer && photo === file) $("channels").replaceChildren(block(one));
  } catch (error) {
    tell(error);
  }
  $("channels").classList.remove("busy");
}

// Two photos

const two = {};

function placed(side) {
  return (file) => {
    two[side] = file;
    const zone = $(side);
    const image = zone.querySelector("img") || zone.appendChild(make("img", { alt: `photo ${side}: ${file.name}` }));
    zone.classList.add("filled");
    shown(image, file);
    if (two.a && two.b) compare({ ...two });
  };
}

// Of one size, since only then they can be compared: the second is cut to the shape of the first.
async function sameSize(photos) {
  const [a, b] = await Promise.all([createImageBitmap(photos.a), createImageBitmap(photos.b)]);
  const scale = Math.min(1, 512 / Math.max(a.width, a.height));
  const [width, height] = [a.width, a.height].map((side) => Math.max(32, Math.round(side * scale)));
  return Promise.all([a, b].map((image) => {
    const canvas = make("canvas", { width, height });
    const cover = Math.max(width / image.width, height / image.height);
    const [w, h] = [image.width * cover, image.height * cover];
    const pen = canvas.getContext("2d");
    pen.imageSmoothingQuality = "high";
    pen.drawImage(image, (width - w) / 2, (height - h) / 2, w, h);
    return new Promise((done) => canvas.toBlob(done, "image/png"));
  }));
}

async function compare(photos) {
  tell();
  const current = () => photos.a === two.a && photos.b === two.b;
  $("difference").textContent = "Comparing.";
  try {
    const [a, b] = await sameSize(photos).catch(() => [photos.a, photos.b]);
    const said = await asked("v1/distance?form=page", { a, b });
    if (current()) drawDifference(said);
  } catch (error) {
    if (!current()) return;
    $("difference").textContent = "";
    tell(error);
  }
}

function drawDifference({ distance, highest, picture, about: { width, height } }) {
  $("difference").replaceChildren(
    make("strong", { textContent: distance.toFixed(3) }), ` LPIPS, compared at ${width} × ${height}`,
    make("img", { src: picture, alt: "where they differ", width, height }),
    make("p", { textContent: `Where they differ: black is not at all, pale yellow ${highest.toPrecision(2)}, the most there is.` }),
  );
}

// The beginning

async function begin() {
  tell();
  model = await asked("v1/model");
  const knows = model.classes ? ` that knows ${model.classes.toLocaleString("en")} names` : "";
  $("about").textContent = `${model.network}${knows}. Give it a photo, and see what it makes of it.`;
  $("login").hidden = true;
  $("distance").hidden = false;
  await drawNetwork();
  if (photo) look(photo);
}

firstPlace("one", look);
place("a", placed("a"));
place("b", placed("b"));
$("mix").addEventListener("input", (event) => ($("heat").style.opacity = event.target.value / 100));
$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value;
  sessionStorage.setItem("token", token);
  begin().catch(tell);
});
begin().catch(tell);
