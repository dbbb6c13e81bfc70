"use strict";
const lists = JSON.parse(document.getElementById("data").textContent);
const place = document.getElementById("rows");
const search = document.getElementById("search");
const list = document.getElementById("list");
const count = document.getElementById("count");

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function folded(title, text) {
  const details = element("details");
  details.append(element("summary", "", title), element("pre", "", text));
  return details;
}

function card(row) {
  const box = element("article", "row");
  box.append(element("h4", "", row.place));
  for (const answer of row.answers) {
    const part = element("div", "answer");
    part.append(element("span", "name", answer.name));
    if (answer.value) part.append(element("pre", "", answer.value));
    if (answer.error) part.append(element("pre", "error", answer.error));
    if (answer.skipped) part.append(element("pre", "skipped", `skipped: ${answer.skipped}`));
    if (answer.prompt) part.append(folded("prompt", answer.prompt));
    if (answer.meta) part.append(element("div", "quiet", answer.meta));
    box.append(part);
  }
  const values = row.values.map(([name, value]) => `${name}: ${value}`).join("\n");
  if (values) box.append(folded("input columns", values));
  return box;
}

function show() {
  const wanted = search.value.toLowerCase();
  const rows = lists[list.value];
  const found = wanted ? rows.filter((row) => JSON.stringify(row).toLowerCase().includes(wanted)) : rows;
  place.replaceChildren(...found.map(card));
  count.textContent = `${found.length} of ${rows.length} rows`;
}

for (const option of list.options) option.textContent += ` (${lists[option.value].length})`;
search.addEventListener("input", show);
list.addEventListener("change", show);
show();
