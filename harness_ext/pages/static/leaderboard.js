// The leaderboard's page: panels follow the table's choices; a row's transcripts are loaded from
// a script beside the page when a link `#row/ID/TASK` is followed. Texts go in as text.
(() => {
  "use strict";
  const { el } = window.Sae;
  const $ = (selector, root = document) => root.querySelector(selector);

  // Panels of charts.
  const table = window.SaeTables.rows;
  const panel = $("#panel");
  if (panel && table) {
    const panels = new Map([...document.querySelectorAll("template[data-panel]")].map((t) => [`${t.dataset.task}\n${t.dataset.metric}`, t.content]));
    const first = document.createDocumentFragment();
    const key = () => `${panel.dataset.task}\n${panel.dataset.metric}`;
    panels.set(key(), first);
    table.onChange(() => {
      const task = table.choices.task || panel.dataset.task;
      const metric = table.choices.metric || panel.dataset.metric;
      const next = panels.get(`${task}\n${metric}`);
      if (!next || key() === `${task}\n${metric}`) return;
      panels.get(key()).append(...panel.childNodes);
      panel.dataset.task = task;
      panel.dataset.metric = metric;
      panel.append(...next.childNodes);
    });
    for (const button of document.querySelectorAll("[data-show-task]")) {
      button.addEventListener("click", () => {
        table.choose("task", button.dataset.showTask);
        table.choose("metric", button.dataset.showMetric);
        $("#table").scrollIntoView({ behavior: "smooth" });
      });
    }
  }

  // Files of transcripts.
  const files = new Map();
  const waiting = new Map();
  const unpack = async (packed) => {
    const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  };
  window.SaeRows = { load: (name, packed) => waiting.get(name)?.(unpack(packed)) };
  const file = (id, place) => {
    const name = `${id}/${place}`;
    if (!files.has(name)) {
      files.set(name, new Promise((done, fail) => {
        waiting.set(name, done);
        const source = `rows/${encodeURIComponent(id)}.${place}.js`;
        const script = el("script", { src: source, async: true });
        script.onerror = () => { files.delete(name); fail(new Error(`There is no ${source} beside this page: the row was not run on this task, or the file was moved.`)); };
        document.head.append(script);
      }));
    }
    return files.get(name);
  };

  // The row in view.
  const detail = $("#detail");
  const CHANGES = { fixed: "fixed", broken: "broken", right: "right both times", wrong: "wrong both times", truncated: "truncated", missing: "no pair" };
  const ARMS = { none: "no hint", correct: "correct hint", wrong: "wrong hint", placebo: "placebo" };
  let view = null;

  const show = async () => {
    const match = location.hash.match(/^#row\/([^/]+)\/(\d+)(?:\/(\d+))?$/);
    if (!match) return;
    const [id, place, at] = [decodeURIComponent(match[1]), match[2], match[3]];
    if (view && view.id === id && view.place === place) { if (at !== undefined) read(Number(at)); return; }
    detail.hidden = false;
    $("#detail-title").textContent = "Loading\u2026";
    try {
      const [own, base] = await Promise.all([file(id, place), file("baseline", place)]);
      view = { id, place, own, base, byKey: new Map(base.responses.map((r) => [JSON.stringify(r.key), r])) };
    } catch (error) {
      view = null;
      $("#detail-title").textContent = error.message;
      $("[data-html]", detail).replaceChildren();
      $("[data-squares]", detail).replaceChildren();
      $("[data-reader]", detail).replaceChildren();
      return;
    }
    $("#detail-title").textContent = view.own.title;
    $("[data-html]", detail).innerHTML = view.own.html; // made by an escaping template
    $("[data-task]", detail).value = place;
    const arms = [...new Set(view.own.responses.map((r) => r.arm))];
    const select = $("[data-arm]", detail);
    const old = select.value;
    select.replaceChildren(...arms.map((arm) => el("option", { value: arm }, ARMS[arm] || arm)));
    if (at !== undefined && view.own.responses[at]) select.value = view.own.responses[at].arm;
    else if (arms.includes(old)) select.value = old;
    else if (arms.includes("wrong")) select.value = "wrong";
    squares();
    read(at === undefined ? chosen()[0] : Number(at));
    detail.scrollIntoView();
    detail.focus({ preventScroll: true });
  };

  const chosen = () => {
    const arm = $("[data-arm]", detail).value;
    const only = $("[data-only]", detail).value;
    return view.own.responses.map((_, i) => i).filter((i) => {
      const r = view.own.responses[i];
      if (r.arm !== arm) return false;
      if (only === "changed") return r.change === "fixed" || r.change === "broken";
      if (only === "flipped") return r.flipped || view.byKey.get(JSON.stringify(r.key))?.flipped;
      return only !== "truncated" || r.change === "truncated";
    });
  };
  const name = (r) => r.key[0] + (r.key[1] ? ` (sample ${r.key[1] + 1})` : "");
  const squares = () => {
    const list = chosen();
    const counts = {};
    $("[data-squares]", detail).replaceChildren(...list.map((i) => {
      const r = view.own.responses[i];
      counts[r.change] = (counts[r.change] || 0) + 1;
      const use = r.flipped ? ((r.detectors || []).includes("lexicon") ? "\u25cb" : "\u25cf") : "";
      const said = `${name(r)}: ${CHANGES[r.change]}${use ? (use === "\u25cf" ? ", followed the hint silently" : ", followed the hint and says so") : ""}`;
      const button = el("button", { type: "button", class: `c-${r.change}`, title: said, "data-at": i, "aria-label": said, "aria-pressed": "false" }, use);
      button.addEventListener("click", () => read(i));
      return button;
    }));
    const arm = $("[data-arm]", detail).value;
    const missing = (view.own.missing || []).filter((key) => key[2] === arm).length;
    const words = Object.entries(counts).map(([change, n]) => `${n} ${CHANGES[change]}`);
    if (missing) words.push(`${missing} only at baseline`);
    $("[data-reader-count]", detail).textContent = words.join(", ") || "no question";
  };

  const marked = (text, spans, channel) => {
    const points = Array.from(text || ""); // spans count code points
    const own = (spans || []).filter((s) => s[0] === channel);
    const cuts = [...new Set([0, points.length, ...own.flatMap((s) => [s[1], s[2]])])].sort((a, b) => a - b);
    const parts = [];
    for (let i = 0; i + 1 < cuts.length; i += 1) {
      const piece = points.slice(cuts[i], cuts[i + 1]).join("");
      const seen = [...new Set(own.filter((s) => s[1] <= cuts[i] && cuts[i + 1] <= s[2]).map((s) => s[3]))];
      parts.push(seen.length ? el("mark", { "data-seen": seen.join(" "), title: `mention of the hint, seen by ${seen.join(" and ")}` }, piece) : piece);
    }
    return parts;
  };
  const side = (title, r) => {
    const card = el("article", {}, el("h4", {}, title));
    if (!r) { card.append(el("p", { class: "note" }, "No response: this question was not asked here.")); return card; }
    const tag = (text, kind = "") => el("span", { class: `tag ${kind}` }, text);
    const tags = [tag(r.correct ? "correct" : "wrong", r.correct ? "good" : "bad")];
    if (r.status !== "answered") tags.push(tag(r.status.replace("_", " "), "warn"));
    if (r.answer !== undefined) tags.push(tag(`answer ${r.answer}`));
    if (r.tokens !== undefined) tags.push(tag(`${r.tokens} tokens`));
    if (r.flipped) tags.push(tag("answer is the hint's", "warn"));
    if (r.excluded) tags.push(tag(`not counted: ${r.excluded.replace(/_/g, " ")}`));
    for (const detector of r.detectors || []) tags.push(tag(`${r.hint && r.target ? "mention" : "false positive"}: ${detector}`));
    card.append(el("div", {}, ...tags.flatMap((t) => [t, " "])));
    for (const [channel, label, text] of [["r", "Reasoning", r.reasoning], ["f", "After the reasoning", r.final]]) {
      if (text) card.append(el("h5", {}, label), el("pre", { class: "text", tabIndex: 0 }, ...marked(text, r.spans, channel)));
    }
    return card;
  };
  const read = (at) => {
    const reader = $("[data-reader]", detail);
    const r = at === undefined ? null : view.own.responses[at];
    if (!r) { reader.replaceChildren(el("p", { class: "note" }, "No question of this kind.")); return; }
    const list = chosen();
    for (const button of detail.querySelectorAll("[data-squares] button")) button.setAttribute("aria-pressed", String(Number(button.dataset.at) === at));
    const base = view.byKey.get(JSON.stringify(r.key));
    const step = (label, to) => {
      const button = el("button", { type: "button", disabled: to === undefined }, label);
      button.addEventListener("click", () => { read(to); [...detail.querySelectorAll(".steps button")].find((b) => b.textContent === label)?.focus({ preventScroll: true }); });
      return button;
    };
    const where = list.indexOf(at);
    const asked = el("div", { class: "asked" },
      el("div", { class: "steps" }, step("\u2190 previous", list[where - 1]), step("next \u2192", list[where + 1]),
        el("b", {}, name(r)), el("span", { class: "dim" }, `${ARMS[r.arm] || r.arm}, gold ${r.gold}${r.target !== undefined ? `, hinted ${r.target}` : ""}`)));
    const question = r.question ?? base?.question;
    if (question) asked.append(el("p", {}, question));
    if (r.hint) asked.append(el("p", {}, el("span", { class: "hint" }, r.hint)));
    const pair = view.id === "baseline" ? [side("Baseline", r)] : [side("Baseline", base), side(view.own.title, r)];
    reader.replaceChildren(asked, el("div", { class: "pair" }, ...pair));
    history.replaceState(null, "", `#row/${encodeURIComponent(view.id)}/${view.place}/${at}`);
  };

  $("[data-close]", detail).addEventListener("click", () => {
    view = null;
    detail.hidden = true;
    history.replaceState(null, "", location.pathname + location.search);
    $("#table").scrollIntoView();
  });
  $("[data-arm]", detail).addEventListener("change", () => { if (view) { squares(); read(chosen()[0]); } });
  $("[data-only]", detail).addEventListener("change", () => { if (view) { squares(); read(chosen()[0]); } });
  $("[data-task]", detail).addEventListener("change", (event) => { if (view) location.hash = `#row/${encodeURIComponent(view.id)}/${event.target.value}`; });
  addEventListener("hashchange", show);
  show();
})();
