"use strict";
// The browsable list of answers. All texts come from the JSON block and are put in as text, never as markup.
(() => {
  const PAGE = 100;
  const data = JSON.parse(document.getElementById("data").textContent);
  const text = (id) => data.strings[id];
  const list = document.getElementById("list");
  const form = document.getElementById("filters");
  const search = document.getElementById("search");
  const selects = [...form.querySelectorAll("select")];
  const nav = document.querySelector(".pages");
  const before = document.getElementById("before");
  const after = document.getElementById("after");
  const place = document.getElementById("place");
  let found = [];
  let start = 0;

  // What an entry of data.items and of data.answers holds is said in page_data.py.
  const item = (row) => data.items[row[1]];
  const filters = {
    method: (row) => text(row[0]),
    family: (row) => text(item(row)[4]),
    recipe: (row) => text(item(row)[5]),
    kind: (row) => text(item(row)[3]),
    split: (row) => text(item(row)[7]),
    verdict: (row) => data.verdicts[row[2]],
  };
  const searched = (row) => [row[3], row[4], item(row)[0], item(row)[1], item(row)[6], ...item(row)[2]];

  function add(parent, tag, content, name) {
    const child = document.createElement(tag);
    if (content !== undefined) child.textContent = content;
    if (name) child.className = name;
    parent.append(child);
    return child;
  }

  function field(parent, name, content) {
    if (content === "" || content === null) return;
    const pair = add(parent, "div");
    add(pair, "dt", name);
    add(pair, "dd", content);
  }

  function nats(value, sign) {
    if (value === null) return "";
    return (sign && value > 0 ? "+" : "") + value.toFixed(2).replace("-", "−") + " nats";
  }

  function scoreText([scorer, value, note, variance]) {
    const worth = value === null ? "unscored" : String(value);
    const spread = variance === null ? "" : `, variance ${variance}`;
    return `${text(scorer)} ${worth}${spread}${text(note) ? ` (${text(note)})` : ""}`;
  }

  function show(row) {
    const [method, , verdict, answer, notes, logprob, evidence, rank, truthLogprob, scores] = row;
    const [diff, question, truths, kind, family, recipe, label, split, trigger, behaves] = item(row);
    const card = add(list, "li", undefined, data.verdicts[verdict]);
    const top = add(card, "div", undefined, "top");
    add(top, "span", data.verdicts[verdict], "verdict");
    add(top, "strong", text(method));
    add(top, "span", [family, recipe, kind].map(text).filter(Boolean).join(" · "));
    add(top, "span", `split ${text(split)}`);
    const all = add(card, "dl");
    field(all, "question", text(question));
    field(all, "answer", text(answer) || "(empty)");
    field(all, "notes", text(notes));
    truths.forEach((truth, i) => field(all, i ? "also true" : "truth", text(truth)));
    const more = add(card, "dl", undefined, "more");
    field(more, "scores", scores.length ? scores.map(scoreText).join(", ") : "none");
    field(more, "log p", nats(logprob, false));
    field(more, "evidence", nats(evidence, true));
    field(more, "rank of the truth", rank);
    field(more, "log p of the truth", nats(truthLogprob, false));
    field(more, "diff", diff === null ? "none, the base itself" : text(diff));
    field(more, "label", label === null ? "" : text(label));
    field(more, "trigger", trigger === null ? "" : text(trigger));
    field(more, "behaves", behaves ? "yes" : "no, so it is in no mean");
  }

  function draw() {
    list.replaceChildren();
    found.slice(start, start + PAGE).forEach(show);
    const end = Math.min(start + PAGE, found.length);
    place.textContent = found.length ? `${start + 1} to ${end} of ${found.length} answers` : "no answer fits";
    before.disabled = start === 0;
    after.disabled = end >= found.length;
  }

  function select() {
    const wanted = selects.filter((s) => s.value !== "").map((s) => [filters[s.dataset.filter], s.value.slice(1)]);
    const words = search.value.trim().toLowerCase();
    const hits = words === "" ? null : data.strings.map((s) => s.toLowerCase().includes(words));
    found = data.answers.filter(
      (row) => wanted.every(([of, value]) => of(row) === value)
        && (hits === null || searched(row).some((id) => id !== null && hits[id])),
    );
    start = 0;
    draw();
  }

  function turn(pages) {
    start += pages * PAGE;
    draw();
    list.focus({ preventScroll: true });
    list.scrollIntoView();
  }

  for (const choice of selects) {
    const of = filters[choice.dataset.filter];
    const names = choice.dataset.filter === "verdict" ? data.verdicts : [...new Set(data.answers.map(of))];
    add(choice, "option", "all").value = "";
    for (const name of names) add(choice, "option", name || "(none)").value = `=${name}`;
    choice.addEventListener("change", select);
  }
  let waiting;
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(select, 150);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(select));
  before.addEventListener("click", () => turn(-1));
  after.addEventListener("click", () => turn(1));
  form.hidden = nav.hidden = false;
  select();
})();
