// Where nodes and links lie in the picture. Pure.
//
// Nodes stand around a loop, as tokens go round the stages: in two rows where there is width, in two columns
// otherwise.

const MARGIN = 2;
const CARD = { height: 92, widest: 216, narrowest: 132, gap: 34 };

/** A place for each of `count` nodes in a picture of this width. */
export function loop(count, width) {
  const half = Math.ceil(count / 2);
  const room = width - 2 * MARGIN;
  const inRow = (room - (half - 1) * CARD.gap) / half;
  if (count === 1) return single(room);
  if (count === 2 && room >= 420) return pair(room);
  return count > 2 && inRow >= CARD.narrowest ? rows(count, half, room, inRow) : columns(count, half, room);
}

function single(room) {
  const width = Math.min(CARD.widest, room);
  return picture([{ x: MARGIN + room / 2, y: MARGIN + CARD.height / 2 }], width, room, CARD.height);
}

function pair(room) {
  const width = Math.min(CARD.widest, (room - 120) / 2);
  const apart = width / 2 + Math.min(room / 2 - width, 90);
  const y = MARGIN + 22 + CARD.height / 2;
  const places = [-apart, apart].map((x) => ({ x: MARGIN + room / 2 + x, y }));
  return picture(places, width, room, CARD.height + 44);
}

function rows(count, half, room, inRow) {
  const width = Math.min(CARD.widest, inRow);
  const between = half > 2 ? 116 : 84;
  const bottom = count - half;
  const step = half > 1 ? Math.min((room - width) / (half - 1), width + 150) : 0;
  const line = (many, index) => MARGIN + room / 2 + (index - (many - 1) / 2) * step;
  const top = MARGIN + CARD.height / 2;
  const places = [];
  for (let at = 0; at < half; at += 1) places.push({ x: line(half, at), y: top });
  for (let at = bottom - 1; at >= 0; at -= 1) places.push({ x: line(bottom, at), y: top + CARD.height + between });
  return picture(places, width, room, 2 * CARD.height + between);
}

function columns(count, half, room) {
  const gap = half > 2 ? 30 : 40;
  const width = Math.min(CARD.widest, (room - (half > 2 ? 56 : 24)) / 2);
  const right = count - half;
  const [left, other] = room > 3 * CARD.widest
    ? [MARGIN + room / 2 - CARD.widest, MARGIN + room / 2 + CARD.widest]
    : [MARGIN + width / 2, MARGIN + room - width / 2];
  const step = CARD.height + gap;
  const all = half * CARD.height + (half - 1) * gap;
  const line = (many, index) => MARGIN + all / 2 + (index - (many - 1) / 2) * step;
  const places = [];
  for (let at = 0; at < half; at += 1) places.push({ x: left, y: line(half, at) });
  for (let at = right - 1; at >= 0; at -= 1) places.push({ x: other, y: line(right, at) });
  return picture(places, width, room, all);
}

function picture(places, width, room, height) {
  return { places, card: { width, height: CARD.height }, width: room + 2 * MARGIN, height: height + 2 * MARGIN };
}

/**
 * The way from one place to another, as the two halves of a curve: straight between neighbours, else bent
 * towards the middle so that it does not run under those between. `aside` moves it to its left, so that
 * several between the same two can be told apart.
 */
export function way(layout, from, to, aside = 0) {
  const [a, b] = [layout.places[from], layout.places[to]];
  const last = layout.places.length - 1;
  const apart = Math.abs(from - to);
  const [middle, centre] = [mean(a, b), { x: layout.width / 2, y: layout.height / 2 }];
  const inLine = Math.abs(a.x - b.x) < 1 || Math.abs(a.y - b.y) < 1;
  const isNear = apart === 1 || apart === last;
  const pull = isNear ? 0 : inLine ? 1 : 0.25;
  const length = Math.hypot(b.x - a.x, b.y - a.y) || 1;
  const bend = {
    x: middle.x + (centre.x - middle.x) * pull * (Math.abs(a.x - b.x) < 1 ? 1 : 0.4) + (2 * aside * (b.y - a.y)) / length,
    y: middle.y + (centre.y - middle.y) * pull * (Math.abs(a.y - b.y) < 1 ? 1 : 0.4) - (2 * aside * (b.x - a.x)) / length,
  };
  const [one, two] = [mean(a, bend), mean(bend, b)];
  const half = mean(one, two);
  return `M${at(a)} Q${at(one)} ${at(half)} Q${at(two)} ${at(b)}`;
}

function mean(a, b) {
  return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 };
}

function at({ x, y }) {
  return `${x.toFixed(1)} ${y.toFixed(1)}`;
}
