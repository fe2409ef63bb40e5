// What pages that take a photo have in common: a place to drop one, and names with bars. No framework.

export const $ = (id) => document.getElementById(id);
export const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;

export function make(tag, values = {}, ...inside) {
  const element = Object.assign(document.createElement(tag), values);
  element.append(...inside);
  return element;
}

export function tell(error) {
  $("error").textContent = error ? error.message : "";
  $("error").hidden = !error;
  if (error) $("status").textContent = "";
}

// A place for a photo: dropped, chosen, or by the keyboard.
export function place(id, then) {
  const zone = $(id);
  const input = zone.querySelector("input");
  input.addEventListener("change", () => {
    if (input.files[0]) then(input.files[0]);
    input.value = ""; // so that the same one can be chosen again
  });
  for (const kind of ["dragover", "dragleave", "drop"]) {
    zone.addEventListener(kind, (event) => {
      event.preventDefault();
      event.stopPropagation();
      zone.classList.toggle("over", kind === "dragover");
      if (kind === "drop" && event.dataTransfer.files[0]) then(event.dataTransfer.files[0]);
    });
  }
}

// The page's first place, to which all goes that is dropped beside one, or pasted.
export function firstPlace(id, then) {
  place(id, then);
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) then(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => event.clipboardData.files[0] && then(event.clipboardData.files[0]));
}

export function shown(image, file) {
  URL.revokeObjectURL(image.src);
  image.hidden = false;
  image.onerror = () => (image.hidden = true); // a format that browsers do not know
  image.src = URL.createObjectURL(file);
}

// A name, how probable it is, and the bar of that.
export function guess(label, probability) {
  const fill = make("i");
  fill.style.width = `${100 * probability}%`;
  return [
    make("b", { textContent: label }),
    make("span", { className: "value", textContent: percent(probability) }),
    make("span", { className: "bar", ariaHidden: "true" }, fill),
  ];
}
