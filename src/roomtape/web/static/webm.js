// Reads from a recorded WebM when its first picture stands: the one thing that a recorder must know of its own file. The server parses the rest.

const SEGMENT = 0x18538067, TRACKS = 0x1654ae6b, TRACK = 0xae, CLUSTER = 0x1f43b675, GROUP = 0xa0; // entered, whatever their size says
const NUMBER = 0xd7, TYPE = 0x83, TIME = 0xe7, SIMPLE = 0xa3, BLOCK = 0xa1;
const PICTURE = 1;

/** Milliseconds from the file's zero to its first picture; 0 where none is found. `buffer`: the file, or as much of it as holds the first cluster. */
export function firstPictureMs(buffer) {
  const view = new DataView(buffer);
  const number = (from, size) => {
    let value = 0;
    for (let n = 0; n < size; n += 1) value = value * 256 + view.getUint8(from + n);
    return value;
  };
  const width = (at) => Math.clz32(view.getUint8(at)) - 23; // of a vint, by its leading zeros
  let [at, cluster, track, picture] = [0, 0, 0, null];
  while (at + 12 <= view.byteLength) {
    const idWidth = width(at);
    const sizeWidth = width(at + idWidth);
    if (idWidth > 4 || sizeWidth > 8) return 0;
    const id = number(at, idWidth);
    const body = at + idWidth + sizeWidth;
    if ([SEGMENT, TRACKS, TRACK, CLUSTER, GROUP].includes(id)) {
      at = body;
      continue;
    }
    const size = number(at + idWidth, sizeWidth) - 2 ** (7 * sizeWidth);
    if (id === NUMBER) track = number(body, size);
    else if (id === TYPE && number(body, size) === PICTURE) picture = track;
    else if (id === TIME) cluster = number(body, size);
    else if ((id === SIMPLE || id === BLOCK) && (view.getUint8(body) & 0x7f) === picture) return cluster + view.getInt16(body + 1);
    at = body + size;
  }
  return 0;
}
