// A photo as `verydeep.preprocess` makes it ready: Pillow's resampling, in the same integers, so that the
// pixels are the same. An image is { data, width, height, channels }, a byte a value, row after row.

const BITS = 22; // of a weight below the point, as in Pillow's 8-bit resampling
const sinc = (x) => (x ? Math.sin(Math.PI * x) / (Math.PI * x) : 1);
const cubic = (x) => (x < 1 ? (1.5 * x - 2.5) * x * x + 1 : (((x - 5) * x + 8) * x - 4) * -0.5);

// how far each filter reaches, and its weight at a distance within that
const FILTERS = {
  box: [0.5, (x) => Number(x > -0.5 && x <= 0.5)],
  bilinear: [1, (x) => 1 - Math.abs(x)],
  hamming: [1, (x) => sinc(x) * (Math.fround(0.54) + Math.fround(0.46) * Math.cos(Math.PI * x))],
  bicubic: [2, (x) => cubic(Math.abs(x))],
  lanczos: [3, (x) => sinc(x) * sinc(x / 3)],
};

// Python's round(): half to even.
const round = (x) => (x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));

// For each of `size` places that `length` pixels become: the first pixel it is made of, and their weights.
function weights(length, size, how) {
  const scale = length / size;
  if (how === "nearest") return Array.from({ length: size }, (_, i) => [Math.floor((i + 0.5) * scale), [1 << BITS]]);
  const [reach, filter] = FILTERS[how];
  const wide = Math.max(scale, 1); // the filter grows with the scale
  return Array.from({ length: size }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.floor(centre - reach * wide + 0.5));
    const end = Math.min(length, Math.floor(centre + reach * wide + 0.5));
    const shares = Array.from({ length: end - first }, (_, at) => {
      const x = (first + at - centre + 0.5) * (1 / wide);
      return Math.abs(x) < reach || how === "box" ? filter(x) : 0;
    });
    const sum = shares.reduce((a, b) => a + b, 0);
    return [first, shares.map((one) => Math.sign(one) * Math.floor((Math.abs(one) / sum) * 2 ** BITS + 0.5))];
  });
}

// One side made `size` long; width: whether it is that.
function pass(image, size, width, how) {
  const length = width ? image.width : image.height;
  if (length === size) return image;
  const inner = image.channels * (width ? 1 : image.width); // values that lie beside each other, and go together
  const lines = image.data.length / length / inner;
  const data = new Uint8ClampedArray(lines * size * inner);
  weights(length, size, how).forEach(([first, shares], place) => {
    for (let line = 0; line < lines; line += 1) {
      const from = (line * length + first) * inner;
      const to = (line * size + place) * inner;
      for (let at = 0; at < inner; at += 1) {
        let sum = 1 << (BITS - 1);
        for (let one = 0; one < shares.length; one += 1) sum += shares[one] * image.data[from + one * inner + at];
        data[to + at] = sum >> BITS;
      }
    }
  });
  return { ...image, data, [width ? "width" : "height"]: size };
}

function scaled(image, width, height, how) {
  // what Pillow 13 does first: the width, but where the height loses more than twice as much
  const down = image.height - height > 2 * Math.max(0, image.width - width);
  return pass(pass(image, down ? height : width, !down, how), down ? width : height, down, how);
}

// The middle of the image, or the whole amid black where it is smaller.
function cropped(image, size) {
  const { width, height, channels } = image;
  const [left, top] = [width, height].map((side) => (size > side ? -Math.floor((size - side) / 2) : round((side - size) / 2)));
  const data = new Uint8ClampedArray(size * size * channels);
  for (let y = Math.max(0, -top); y < Math.min(size, height - top); y += 1) {
    const start = Math.max(0, left);
    const row = image.data.subarray(((y + top) * width + start) * channels, ((y + top) * width + Math.min(width, left + size)) * channels);
    data.set(row, (y * size + start - left) * channels);
  }
  return { data, width: size, height: size, channels };
}

// Red, green and blue of a canvas's pixels, or their grey, as Pillow's convert("L") has it.
function taken({ data, width, height }, grey) {
  const channels = grey ? 1 : 3;
  const values = new Uint8ClampedArray(width * height * channels);
  for (let from = 0, to = 0; from < data.length; from += 4, to += channels) {
    if (grey) values[to] = (data[from] * 19595 + data[from + 1] * 38470 + data[from + 2] * 7471 + 0x8000) >> 16;
    else for (let at = 0; at < 3; at += 1) values[to + at] = data[from + at];
  }
  return { data: values, width, height, channels };
}

// rgba: an ImageData. record: the model's `preprocess`.
export function prepared(rgba, record) {
  let image = taken(rgba, record.channel_order === "L");
  const { width, height } = image;
  const { resize_size: size, interpolation: how } = record;
  const longer = Math.floor((size * Math.max(width, height)) / Math.min(width, height));
  const sides = { none: [width, height], exact: Array.isArray(size) ? [size[1], size[0]] : [size, size] };
  sides.shorter = height < width ? [longer, size] : [size, longer];
  if (record.detail < Math.min(width, height)) {
    const scale = record.detail / Math.min(width, height);
    const small = [width, height].map((side) => Math.max(1, round(scale * side)));
    image = scaled(image, ...small, how);
  }
  image = scaled(image, ...sides[record.resize], how);
  return record.crop_size === null ? image : cropped(image, record.crop_size);
}
