// Makes elements. Whatever comes from the cluster goes in as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element of HTML. */
export function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** An element of SVG. */
export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  set(element, attributes);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Sets attributes; those that are null, undefined or false are removed. */
export function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) element.removeAttribute(name);
    else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
  }
}

/** Sets the text of an element, and touches nothing when it has it. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * Has `parent` hold one element for each item, in their order. Elements stay those they are as long as their
 * item's key does, so that focus, selection and what was unfolded stay too.
 */
export function keyed(parent, items, key, make, update) {
  const known = new Map([...parent.children].map((element) => [element.dataset.key, element]));
  let before = null;
  for (const item of items) {
    const name = key(item);
    let element = known.get(name);
    known.delete(name);
    if (!element) {
      element = make(item);
      element.dataset.key = name;
    }
    const place = before ? before.nextSibling : parent.firstChild;
    if (place !== element) parent.insertBefore(element, place);
    update(element, item);
    before = element;
  }
  for (const element of known.values()) element.remove();
}

let canvas = null;

/** As much of `text` as fits into `width` pixels of an SVG, with an ellipsis where something is left out. */
export function shorten(text, width, font) {
  canvas ??= document.createElement("canvas").getContext("2d");
  canvas.font = font;
  const fits = (part) => canvas.measureText(part).width <= width;
  if (fits(text)) return text;
  const letters = [...text];
  while (letters.length > 0 && !fits(letters.join("") + "…")) letters.pop();
  return letters.length > 0 ? letters.join("") + "…" : "";
}
