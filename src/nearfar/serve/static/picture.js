// Picture files: make one small enough to be sent, and show about what the model gets of it. Knows no server.

const BESIDE = 4096; // bytes of a form around a picture: its class, and what parts them

/**
 * A picture file as it is, or, where it is larger than the server takes, a smaller one.
 * @param {Blob} file
 * @param {{body_bytes: number, pixels: number}} limits
 * @returns {Promise<{blob: Blob, bitmap: ImageBitmap | null, shrunk: boolean}>} no bitmap: this browser cannot read it
 * @throws {Error} it is too large and cannot be read here
 */
export async function prepare(file, limits) {
  const bitmap = await createImageBitmap(file).catch(() => null);
  const pixels = bitmap ? bitmap.width * bitmap.height : 0;
  const most = limits.body_bytes - BESIDE;
  if (file.size <= most && pixels <= limits.pixels) return { blob: file, bitmap, shrunk: false };
  if (!bitmap) {
    const sizes = `The file has ${megabytes(file.size)}, the server takes ${megabytes(limits.body_bytes)}`;
    throw new Error(`${sizes}, and this browser cannot make it smaller.`);
  }
  let scale = Math.min(1, Math.sqrt(limits.pixels / pixels), 2048 / Math.max(bitmap.width, bitmap.height));
  for (; scale > 0.001; scale /= 1.6) {
    const canvas = canvasFor(bitmap, scale);
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    for (const type of ["image/png", "image/jpeg"]) {
      if (type === "image/jpeg" && !opaque(context)) continue; // JPEG would turn what is transparent black
      const blob = await canvas.convertToBlob({ type, quality: 0.92 });
      if (blob.size <= most) return { blob, bitmap, shrunk: true };
    }
  }
  throw new Error(`The server takes ${megabytes(limits.body_bytes)}, too little for this picture.`);
}

/** The picture with light and dark exchanged, as a PNG file of at most 2,048 pixels a side. */
export async function inverted(bitmap) {
  const scale = Math.min(1, 2048 / Math.max(bitmap.width, bitmap.height));
  const canvas = canvasFor(bitmap, scale);
  const context = canvas.getContext("2d");
  onWhite(context, bitmap, canvas.width, canvas.height);
  const image = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < image.data.length; i++) if (i % 4 < 3) image.data[i] = 255 - image.data[i];
  context.putImageData(image, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}

/**
 * About what the server makes of a picture: the size of the model's input, grey where the model is, on white.
 * @returns {ImageData}
 */
export function preview(bitmap, [height, width], channels) {
  // Fine pixels along each side of a coarse one.
  const per = Math.max(1, Math.min(8, Math.floor(1024 / Math.max(height, width))));
  const canvas = new OffscreenCanvas(width * per, height * per);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = bitmap.width > width || bitmap.height > height;
  onWhite(context, bitmap, canvas.width, canvas.height);
  const fine = context.getImageData(0, 0, canvas.width, canvas.height).data;
  const out = new ImageData(width, height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const sum = [0, 0, 0];
      for (let row = y * per; row < (y + 1) * per; row++) {
        for (let column = x * per; column < (x + 1) * per; column++) {
          for (let c = 0; c < 3; c++) sum[c] += fine[4 * (row * width * per + column) + c];
        }
      }
      const [red, green, blue] = sum.map((value) => value / per ** 2);
      const grey = 0.299 * red + 0.587 * green + 0.114 * blue;
      out.data.set(channels === 1 ? [grey, grey, grey, 255] : [red, green, blue, 255], 4 * (y * width + x));
    }
  }
  return out;
}

/** Whether the ground of an image, its outermost pixels, is light. */
export function lightGround({ data, width, height }) {
  const rim = [];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (x === 0 || y === 0 || x === width - 1 || y === height - 1) rim.push(data[4 * (y * width + x)]);
    }
  }
  rim.sort((a, b) => a - b);
  return rim[rim.length >> 1] > 127;
}

function canvasFor(bitmap, scale) {
  return new OffscreenCanvas(Math.max(1, Math.floor(bitmap.width * scale)), Math.max(1, Math.floor(bitmap.height * scale)));
}

function onWhite(context, bitmap, width, height) {
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
}

function opaque(context) {
  const { data } = context.getImageData(0, 0, context.canvas.width, context.canvas.height);
  for (let i = 3; i < data.length; i += 4) if (data[i] < 255) return false;
  return true;
}

function megabytes(bytes) {
  return bytes < 1e6 ? `${Math.ceil(bytes / 1000)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}
