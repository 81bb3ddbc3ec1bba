// Choosing and sorting pictures, a larger view of one, names to copy. The page is whole without any of it.
"use strict";

const all = (query, root = document) => [...root.querySelectorAll(query)];
const made = (name, fields) => Object.assign(document.createElement(name), fields);

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // not allowed to a page in a frame, or of an old browser
    const field = made("textarea", { value: text });
    (document.querySelector("dialog[open]") ?? document.body).append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
}

for (const one of all(".copied, .mend code")) {
  const button = made("button", { type: "button", className: "copy", textContent: "copy" });
  button.setAttribute("aria-label", `copy ${one.textContent}`);
  button.onclick = async () => {
    await copied(one.textContent);
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  };
  one.after(button);
}

// A larger view: Enter or a click opens it, Escape, a click or its button closes it.
const larger = made("dialog", { className: "larger" });
larger.setAttribute("aria-label", "A picture, larger");
const [close, frame, words] = [made("button", { type: "button", className: "copy", textContent: "close" }), made("div", {}), made("p", {})];
larger.append(close, frame, words);
document.body.append(larger);
larger.onclick = (event) => { if (event.target !== words && !words.contains(event.target)) larger.close(); };

function enlarge(picture) {
  frame.replaceChildren(picture.firstElementChild.cloneNode(true));
  const link = picture.closest("figure, .asked")?.querySelector("a.file")?.cloneNode();
  words.replaceChildren(picture.dataset.words, ...(link ? [" ", Object.assign(link, { textContent: "open the original" })] : []));
  larger.showModal();
}

for (const picture of all(".picture:not(a .picture)")) {
  const image = picture.firstElementChild;
  picture.dataset.words = image.alt ?? image.getAttribute("aria-label");
  picture.tabIndex = 0;
  picture.setAttribute("role", "button");
  picture.setAttribute("aria-label", `enlarge ${picture.dataset.words}`);
  picture.onclick = () => enlarge(picture);
  picture.onkeydown = (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    enlarge(picture);
  };
}

// Lists of pictures: those of a class, those called something else, in another order.
const name = (item) => item.querySelector(".file")?.textContent ?? "";
const text = new Intl.Collator(undefined, { numeric: true }).compare;
const orders = {
  given: (one, other) => one.rank - other.rank,
  reversed: (one, other) => other.rank - one.rank,
  label: (one, other) => text(one.dataset.label, other.dataset.label) || one.rank - other.rank,
  name: (one, other) => text(name(one), name(other)) || one.rank - other.rank,
};

for (const form of all("form.choose")) {
  const root = form.parentElement;
  const [first, rest] = all("ol.gallery", root);
  const more = root.querySelector("details.more");
  const items = all("ol.gallery > li", root);
  const room = first.children.length;
  items.forEach((item, i) => { item.rank = i; });
  const show = () => {
    const { label, other, order } = form.elements;
    const found = items.filter((item) => (!label?.value || item.dataset.label === label.value)
      && (!other?.checked || "other" in item.dataset));
    found.sort(orders[order.value]);
    first.replaceChildren(...found.slice(0, room));
    if (more) {
      rest.replaceChildren(...found.slice(room));
      more.hidden = found.length <= room;
      more.querySelector("summary").textContent = `${(found.length - room).toLocaleString("en")} more`;
    }
    form.querySelector("output").textContent = found.length === items.length ? "" : `${found.length} of ${items.length}`;
  };
  form.onchange = show;
  form.onsubmit = (event) => event.preventDefault();
  form.hidden = false;
}
