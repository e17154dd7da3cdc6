"use strict";
// Without this script the page shows the same; with it a mark shows its frame, and questions can be sought.
const list = document.getElementById("list");
let shown = null; // the plot that shows a frame

function hide() {
  if (!shown) return;
  shown.querySelectorAll(".cursor, .tip").forEach((element) => element.remove());
  shown.parentElement.querySelector(".on")?.classList.remove("on");
  shown = null;
}

function show(plot, index, tip = true) {
  const xs = plot.dataset.x.split(" ");
  const item = plot.parentElement.querySelectorAll(".keyframes > li")[index];
  hide();
  shown = plot;
  const cursor = document.createElement("div");
  cursor.className = "cursor";
  cursor.style.left = xs[index] / 10 + "%";
  plot.append(cursor);
  item.classList.add("on");
  plot.setAttribute("aria-valuenow", index + 1);
  plot.setAttribute("aria-valuetext", item.textContent.trim().replace(/\s+/g, " "));
  if (!tip) return;
  const box = document.createElement("div");
  box.className = "tip";
  box.setAttribute("aria-hidden", "true");
  for (const node of item.childNodes) box.append(node.cloneNode(true));
  plot.append(box);
  box.classList.toggle("below", plot.getBoundingClientRect().top < box.offsetHeight);
  const room = plot.clientWidth - box.offsetWidth;
  box.style.left = Math.max(0, Math.min(room, plot.clientWidth * xs[index] / 1000 - box.offsetWidth / 2)) + "px";
}

function nearest(plot, event) {
  const area = plot.getBoundingClientRect();
  const x = 1000 * (event.clientX - area.left) / area.width;
  const distances = plot.dataset.x.split(" ").map((at) => Math.abs(at - x));
  return distances.indexOf(Math.min(...distances));
}

for (const plot of document.querySelectorAll(".plot")) {
  const count = plot.dataset.x ? plot.dataset.x.split(" ").length : 0;
  if (!count) continue;
  plot.tabIndex = 0;
  plot.setAttribute("role", "slider");
  plot.setAttribute("aria-valuemin", 1);
  plot.setAttribute("aria-valuemax", count);
  plot.setAttribute("aria-valuenow", 1);
}

const hasMarks = (target) => {
  const plot = target.closest?.(".plot");
  return plot?.dataset.x ? plot : null;
};
for (const name of ["pointermove", "pointerdown"]) {
  document.addEventListener(name, (event) => {
    const plot = hasMarks(event.target);
    const item = event.target.closest?.(".keyframes > li");
    if (plot) show(plot, nearest(plot, event));
    else if (item) show(item.closest(".body").querySelector(".plot"), [...item.parentElement.children].indexOf(item), false);
    else if (shown !== document.activeElement) hide();
  });
}
document.addEventListener("focusin", (event) => {
  const plot = hasMarks(event.target);
  if (!plot) hide();
  else if (plot !== shown) show(plot, plot.getAttribute("aria-valuenow") - 1);
});
document.addEventListener("focusout", hide);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") hide();
  const plot = hasMarks(event.target);
  if (!plot || event.ctrlKey || event.metaKey || event.altKey) return;
  const last = plot.getAttribute("aria-valuemax") - 1, at = plot.getAttribute("aria-valuenow") - 1;
  const to = {
    ArrowRight: at + 1, ArrowUp: at + 1, ArrowLeft: at - 1, ArrowDown: at - 1, Home: 0, End: last,
  }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  show(plot, Math.max(0, Math.min(last, to)));
});

// A link to a question opens it.
function openLinked() {
  const body = /^#q\d+$/.test(location.hash) && document.querySelector(location.hash);
  if (!body) return;
  if (form) { form.reset(); arrange(); }
  body.parentElement.open = true;
  body.closest("article").scrollIntoView();
  body.parentElement.querySelector("summary").focus({ preventScroll: true });
}

const form = document.querySelector("form");
const articles = [...list.children];
const texts = articles.map((article) =>
  [...article.querySelectorAll("h3, bdi, .options")].map((part) => part.textContent).join(" ").toLowerCase());

function arrange() {
  const { text, group, category, order } = form.elements;
  const words = text.value.toLowerCase().split(/\s+/);
  let count = 0;
  articles.forEach((article, index) => {
    const fits = (field, value) => !field?.value || field.value === value;
    article.hidden = !(words.every((word) => texts[index].includes(word))
      && fits(group, article.dataset.group) && fits(category, article.dataset.category));
    count += !article.hidden;
  });
  form.querySelector("output").value = `${count} of ${articles.length} shown`;
  if (!order || order.value === list.dataset.order) return;
  list.dataset.order = order.value;
  const gain = (article) => Number(article.dataset.gain ?? 0) * order.value;
  list.append(...(order.value ? [...articles].sort((one, other) => gain(other) - gain(one)) : articles));
}
if (form) {
  form.hidden = false;
  form.addEventListener("input", arrange);
  form.addEventListener("submit", (event) => event.preventDefault());
  arrange();
}
window.addEventListener("hashchange", openLinked);
openLinked();
