// Grey pixels to a PNG file, to the byte: a canvas may be blurred by a browser that guards against fingerprints.

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n >>> 0;
});

/**
 * An 8-bit grey PNG, not compressed: it is small, and there at once.
 * @param {Uint8Array} pixels in row order
 * @param {[number, number]} size height and width
 * @returns {Blob}
 */
export function greyPng(pixels, [height, width]) {
  const rows = new Uint8Array(height * (width + 1)); // each row begins with 0: no filter
  for (let y = 0; y < height; y++) rows.set(pixels.subarray(y * width, (y + 1) * width), y * (width + 1) + 1);
  const header = [...big(width), ...big(height), 8, 0, 0, 0, 0];
  const parts = [chunk("IHDR", header), chunk("IDAT", stored(rows)), chunk("IEND", [])];
  return new Blob([new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]), ...parts], { type: "image/png" });
}

function chunk(name, content) {
  const body = new Uint8Array(4 + content.length);
  body.set([...name].map((letter) => letter.charCodeAt(0)));
  body.set(content, 4);
  let crc = 0xffffffff;
  for (const byte of body) crc = TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return new Uint8Array([...big(content.length), ...body, ...big(~crc >>> 0)]);
}

/** A zlib stream of stored blocks, each of 65,535 bytes at most. */
function stored(bytes) {
  const out = [0x78, 0x01];
  for (let at = 0; at < bytes.length; at += 65535) {
    const block = bytes.subarray(at, at + 65535);
    const [low, high] = [block.length & 255, block.length >>> 8];
    out.push(at + 65535 >= bytes.length ? 1 : 0, low, high, low ^ 255, high ^ 255);
    for (const byte of block) out.push(byte);
  }
  let [a, b] = [1, 0];
  for (const byte of bytes) {
    a = (a + byte) % 65521;
    b = (b + a) % 65521;
  }
  return Uint8Array.from([...out, ...big(((b << 16) | a) >>> 0)]);
}

function big(number) {
  return [number >>> 24, (number >>> 16) & 255, (number >>> 8) & 255, number & 255];
}
