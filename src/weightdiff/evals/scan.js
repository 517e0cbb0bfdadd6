"use strict";
// Filters the list of adapters: by verdict, and by what the search finds in their texts.
(() => {
  const form = document.getElementById("filters");
  const verdict = document.getElementById("verdict");
  const search = document.getElementById("search");
  const shown = document.getElementById("shown");
  const cards = [...document.querySelectorAll("#adapters > li")].map((card) => ({
    card,
    verdict: card.dataset.verdict,
    text: card.textContent.toLowerCase(),
  }));

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let n = 0;
    for (const { card, verdict: own, text } of cards) {
      const wanted = (!verdict.value || verdict.value === own) && words.every((w) => text.includes(w));
      card.hidden = !wanted;
      if (wanted) n += 1;
    }
    shown.textContent = `${n} of ${cards.length} adapters`;
  }

  form.hidden = false;
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  filter();
})();
