/** Packs files into a ZIP archive, without compression, since images are already compressed. */

const LOCAL = 0x04034b50;
const CENTRAL = 0x02014b50;
const END = 0x06054b50;
/** Flag for file names in UTF-8. */
const UTF8 = 0x0800;
const VERSION = 20;

/**
 * @param {File[]} files At most 4 GiB in total.
 * @param {string} name Name of the archive.
 */
export async function zip(files, name) {
  /** @type {BlobPart[]} */
  const parts = [];
  const directory = [];
  let offset = 0;
  const names = new Set();
  for (const file of files) {
    const path = new TextEncoder().encode(freshName(file.name, names));
    const data = new Uint8Array(await file.arrayBuffer());
    const facts = { crc: crc32(data), size: data.length, path, offset };
    const head = header(LOCAL, facts);
    parts.push(head, data);
    directory.push(header(CENTRAL, facts));
    offset += head.length + data.length;
  }
  const size = directory.reduce((sum, entry) => sum + entry.length, 0);
  const end = new DataView(new ArrayBuffer(22));
  end.setUint32(0, END, true);
  end.setUint16(8, files.length, true);
  end.setUint16(10, files.length, true);
  end.setUint32(12, size, true);
  end.setUint32(16, offset, true);
  return new File([...parts, ...directory, end], name, { type: "application/zip" });
}

/**
 * @param {string} name
 * @param {Set<string>} taken
 */
function freshName(name, taken) {
  let fresh = name;
  for (let number = 2; taken.has(fresh); number += 1) {
    fresh = name.replace(/(\.\w+)?$/, (ending) => `-${number}${ending}`);
  }
  taken.add(fresh);
  return fresh;
}

/**
 * @param {number} kind LOCAL or CENTRAL.
 * @param {{crc: number, size: number, path: Uint8Array, offset: number}} facts
 */
function header(kind, { crc, size, path, offset }) {
  const central = kind === CENTRAL;
  const bytes = new Uint8Array((central ? 46 : 30) + path.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, kind, true);
  // The central header has the program's version before the fields that both headers have.
  const at = central ? 6 : 4;
  if (central) view.setUint16(4, VERSION, true);
  view.setUint16(at, VERSION, true);
  view.setUint16(at + 2, UTF8, true);
  // 1 January 1980, the earliest date of the format.
  view.setUint16(at + 8, 0x21, true);
  view.setUint32(at + 10, crc, true);
  view.setUint32(at + 14, size, true);
  view.setUint32(at + 18, size, true);
  view.setUint16(at + 22, path.length, true);
  if (central) view.setUint32(42, offset, true);
  bytes.set(path, central ? 46 : 30);
  return bytes;
}

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

/** @param {Uint8Array} data */
export function crc32(data) {
  let crc = 0xffffffff;
  for (const byte of data) crc = TABLE[(crc ^ byte) & 0xff] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}
