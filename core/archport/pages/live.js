"use strict";
(() => {
  const EVERY = 1000, KEPT = 121, LATELY = 60, HEIGHT = 340;
  // Snapshots of the counters, oldest first: {at: seconds, metrics}.
  const past = [];
  let key = "", told = null, chart = null, drawnModels = "", drawnRefusals = "", offered = "", timer = 0;

  async function ask(path, body, signal) {
    const headers = { ...(key ? { authorization: "Bearer " + key } : {}), ...(body ? { "content-type": "application/json" } : {}) };
    const answer = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
    if (answer.status === 401) needKey();
    if (!answer.ok) {
      const fault = await answer.json().catch(() => ({}));
      throw new Error(`${answer.status}: ${fault.error?.message || fault.error || fault.message || answer.statusText}`);
    }
    return answer;
  }

  function needKey() {
    $("key-form").hidden = false;
    key = "";
  }

  // ---- Counters: now, and what they grew by.

  const value = (name, metrics = told.metrics) => metrics[name] || 0;
  const label = (name, labels) => new RegExp(`[{,]${labels}="([^"]*)"`).exec(name)?.[1];
  // Addresses that are asked for an answer, and not for how the server does.
  const asked = (path) => path && path.startsWith("/") && !/^\/(health(\/.*)?|metrics|page\.json|plans\.json|openapi\.json)?$/.test(path);
  function sum(family, wanted = () => true, metrics = told.metrics) {
    let total = 0;
    for (const [name, count] of Object.entries(metrics)) {
      if ((name === family || name.startsWith(family + "{")) && wanted(name)) total += count;
    }
    return total;
  }
  const since = (age) => {
    const now = past.at(-1).at;
    return past.find((each) => now - each.at <= age + 0.25) || past[0];
  };
  function rate(family, wanted, age = 5) {
    const before = since(age), now = past.at(-1);
    if (now.at <= before.at) return 0;
    return Math.max(0, sum(family, wanted, now.metrics) - sum(family, wanted, before.metrics)) / (now.at - before.at);
  }

  // As Prometheus' histogram_quantile has it: evenly spread inside of a bucket.
  function quantile(share, family, wanted = () => true, age = LATELY) {
    const before = since(age).metrics, now = past.at(-1).metrics, buckets = new Map();
    for (const [name, count] of Object.entries(now)) {
      if (!name.startsWith(family + "_bucket{") || !wanted(name)) continue;
      const bound = label(name, "le") === "+Inf" ? Infinity : Number(label(name, "le"));
      buckets.set(bound, (buckets.get(bound) || 0) + count - (before[name] || 0));
    }
    const sorted = [...buckets].sort((one, other) => one[0] - other[0]);
    const all = sorted.at(-1)?.[1] || 0;
    if (!all) return null;
    let [low, fewer] = [0, 0];
    for (const [bound, count] of sorted) {
      if (count >= share * all) return bound === Infinity ? low : low + (bound - low) * ((share * all - fewer) / (count - fewer));
      [low, fewer] = [bound, count];
    }
    return low;
  }

  // ---- What is drawn.

  const lasting = (time) => (time === null ? "–" : seconds(time));
  const some = (value) => (value >= 100 ? number(Math.round(value)) : value >= 10 ? value.toFixed(1) : value.toFixed(2)).replace(/\.00?$/, "");
  const ofRequests = (name) => asked(label(name, "path"));

  function tiles() {
    const requests = sum("archport_requests_total", ofRequests);
    return [
      ["Requests a second", some(rate("archport_requests_total", ofRequests)), `${number(requests)} answered`,
        { name: "archport_requests_total", value: requests }],
      ["Under way", number(value("archport_queue_requests")), `${number(value("archport_queue_tokens"))} tokens`,
        { name: "archport_queue_requests", value: value("archport_queue_requests") }],
      ["Tokens read a second", some(rate("archport_tokens_total")), `${number(sum("archport_tokens_total"))} read`,
        { name: "archport_tokens_total", value: sum("archport_tokens_total") }],
      ["Tokens written a second", some(rate("archport_generated_tokens_total")),
        `${number(sum("archport_generated_tokens_total"))} written`,
        { name: "archport_generated_tokens_total", value: sum("archport_generated_tokens_total") }],
      ["Latency, median", lasting(quantile(0.5, "archport_request_seconds", ofRequests)),
        `99 % within ${lasting(quantile(0.99, "archport_request_seconds", ofRequests))}`,
        { name: "archport_request_seconds", value: quantile(0.5, "archport_request_seconds", ofRequests) }],
      ["First token, median", lasting(quantile(0.5, "archport_first_token_seconds")),
        `99 % within ${lasting(quantile(0.99, "archport_first_token_seconds"))}`,
        { name: "archport_first_token_seconds", value: quantile(0.5, "archport_first_token_seconds") }],
      ["In the queue, median", lasting(quantile(0.5, "archport_queue_seconds")),
        `device ${lasting(quantile(0.5, "archport_inference_seconds"))}`,
        { name: "archport_queue_seconds", value: quantile(0.5, "archport_queue_seconds") }],
      ["Refused", number(sum("archport_rejected_total")), `engine deaths: ${number(value("archport_engine_deaths"))}`,
        { name: "archport_rejected_total", value: sum("archport_rejected_total") }],
    ];
  }

  function drawTiles() {
    $("tiles").replaceChildren(...tiles().map(([name, text, more, metric]) => {
      const [box, shown] = [make("div"), make("dd", text, { "data-metric": metric.name, "data-value": metric.value ?? "" })];
      shown.append(make("small", more));
      box.append(make("dt", name), shown);
      return box;
    }));
  }

  const SERIES = [["Texts, pairs, prompts", "rows", 0], ["Written tokens", "chat", 1]];
  const ofKind = (kind) => (name) => label(name, "kind") === kind;

  function drawRate() {
    const now = past.at(-1).at, text = getComputedStyle(document.body).color;
    const lines = SERIES.map(([, kind]) => past.map((each, at) => {
      const before = past[at - 1];
      if (!before) return null;
      const made = sum("archport_window_tokens_total", ofKind(kind), each.metrics) -
        sum("archport_window_tokens_total", ofKind(kind), before.metrics);
      return Math.max(0, made) / (each.at - before.at);
    }));
    const values = [past.map((each) => each.at - now), ...lines];
    $("rate-text").textContent = "The device computes " + SERIES.map(([, kind]) =>
      `${some(rate("archport_window_tokens_total", ofKind(kind)))} ${kind === "rows" ? "tokens of texts" : "new tokens of chats"}`).join(" and ") +
      " a second; two minutes are drawn.";
    if (chart) return chart.setData(values);
    const width = $("rate").clientWidth || 320;
    chart = new uPlot({
      width, height: HEIGHT, legend: { show: false },
      cursor: { show: false },
      scales: { x: { time: false, range: [-120, 0] }, y: { range: (_, low, high) => [0, Math.max(10, high || 0) * 1.08] } },
      axes: [
        { stroke: text, grid: { show: false }, values: (_, ticks) => ticks.map((tick) => (tick ? `${tick} s` : "now")) },
        { stroke: text, grid: { stroke: "rgba(128,128,128,.25)" }, size: 62, values: (_, ticks) => ticks.map(number) },
      ],
      series: [{}, ...SERIES.map(([, , at]) => ({ stroke: COLOURS[at], width: 2, fill: COLOURS[at] + "33", points: { show: false } }))],
    }, values, $("rate"));
  }

  const MEMORY = [
    ["Weights", "archport_weights_bytes", 0],
    ["Prefix cache", "archport_prefix_bytes", 2],
    ["Reserved by texts under way", "archport_reserved_bytes", 1],
  ];

  function drawMemory() {
    const budget = value("archport_budget_bytes");
    const owned = MEMORY.map(([name, metric, at]) => [name, value(metric), COLOURS[at]]);
    const free = Math.max(0, budget - owned.reduce((total, [, size]) => total + size, 0));
    bar("memory", [...owned, ["Free", free, "transparent"]].map(([, size, colour]) => [size / (budget || 1), colour]));
    swatches("memory-legend", owned.map(([name, , colour]) => [name, colour]));
    $("memory-text").textContent = budget
      ? `${bytes(budget - free)} of the budget of ${bytes(budget)} are spoken for. The last plan's peak is ${bytes(value("archport_planned_bytes"))}.`
      : "No model is loaded, so there is no budget.";
    const rows = [
      ...MEMORY.map(([name, metric]) => [name, metric]),
      ["KV among the reserved", "archport_kv_bytes"],
      ["Peak of the last plan", "archport_planned_bytes"],
      ["Live arrays, measured", "archport_device_bytes"],
      ["Pool of freed buffers, measured", "archport_pool_bytes"],
      ["Process on the host, measured", "archport_host_bytes"],
      ["Budget", "archport_budget_bytes"],
    ];
    const [head, body, line] = [make("thead"), make("tbody"), make("tr")];
    line.append(...["what", "bytes", "of the budget"].map((name) => make("th", name, { scope: "col" })));
    head.append(line);
    body.append(...rows.map(([name, metric]) => {
      const row = make("tr");
      row.append(make("th", name, { scope: "row" }), make("td", bytes(value(metric)), { "data-metric": metric, "data-value": value(metric) }),
        make("td", budget ? (100 * value(metric) / budget).toFixed(1) + " %" : "–"));
      return row;
    }));
    $("memory-table").replaceChildren(head, body);
  }

  function facts(entries) {
    const list = make("dl", undefined, { class: "facts" });
    for (const [name, text] of entries) if (text) list.append(make("dt", name), make("dd", text));
    return list;
  }

  // What a plan leaves to the other models, to running texts and to what prompts leave behind.
  const OF_PLAN = { resident: "left to others" };

  function drawModels() {
    const now = JSON.stringify([told.models, told.unloaded]);
    if (now === drawnModels) return;
    drawnModels = now;
    $("models").replaceChildren(...told.models.map((model) => {
      const card = make("article", undefined, { class: "card" });
      const plan = model.plan;
      card.append(make("h3", model.id), facts([
        ["can", model.capabilities.join(", ")],
        ["plugin", `${model.plugin}, ${model.architecture}`],
        ["layers", model.layers.join("; ")],
        ["width", `${number(model.hidden_size)}, ${number(model.vocabulary)} tokens in the vocabulary`],
        ["context", `${number(model.context)} tokens`],
        ["weights", `${bytes(model.weights)}, computed in ${model.dtype}`],
        ["vectors", model.dimensions && `${number(model.dimensions)} numbers, pooled by ${model.pooling}, ${model.similarity}`],
        ["prompts", model.prompts.join(", ")],
        ["revision", model.revision],
        ["last plan", plan && `${bytes(plan.peak)} of ${bytes(plan.budget)}: ` +
          Object.entries(plan.bytes).map(([name, size]) => `${OF_PLAN[name] || name} ${bytes(size)}`).join(", ")],
        ["paths", plan && plan.paths.join("; ")],
      ]));
      return card;
    }), ...told.unloaded.map((name) => {
      const card = make("article", undefined, { class: "card" });
      card.append(make("h3", name), make("p", "Loaded by the first request that names it.", { class: "quiet" }));
      return card;
    }));
  }

  function drawRefusals() {
    const now = JSON.stringify(told.refusals);
    if (now === drawnRefusals) return;
    drawnRefusals = now;
    $("no-refusals").hidden = told.refusals.length > 0;
    $("refusals").hidden = !told.refusals.length;
    const [head, body, line] = [make("thead"), make("tbody"), make("tr")];
    line.append(...["when", "address", "status", "code", "numbers"].map((name) => make("th", name, { scope: "col" })));
    head.append(line);
    body.append(...told.refusals.map((each) => {
      const row = make("tr"), shown = Object.entries(each.numbers).map(([name, size]) =>
        `${name.replaceAll("_", " ").replace(/ bytes$/, "")} ${name.endsWith("_bytes") ? bytes(size) : name.endsWith("_ms") ? seconds(size / 1000) : number(size)}`);
      row.append(make("th", new Date(1000 * each.at).toLocaleTimeString("en-GB"), { scope: "row" }),
        ...[each.path, each.status, each.code].map((text) => make("td", String(text))), make("td", shown.join(", "), { class: "long" }));
      return row;
    }));
    $("refusals").replaceChildren(head, body);
  }

  function draw() {
    if (!told) return;
    const words = { ready: "ready", loading: "loading its models", ending: "ending", unhealthy: "not well" };
    setText("state", words[told.state]);
    setText("about", `version ${told.version}${told.device ? ", " + told.device : ""}`);
    drawTiles();
    drawRate();
    drawMemory();
    drawModels();
    drawRefusals();
    offer();
    plans.offer(told);
  }

  async function poll() {
    clearTimeout(timer);
    try {
      told = await (await ask("/page.json")).json();
      $("key-form").hidden = true;
      past.push({ at: performance.now() / 1000, metrics: told.metrics });
      if (past.length > KEPT) past.shift();
      draw();
    } catch (error) {
      setText("state", $("key-form").hidden ? "not reached" : "waits for a key");
    }
    clearTimeout(timer);
    timer = setTimeout(poll, document.hidden ? 10 * EVERY : EVERY);
  }

  // ---- Boxes to try it.

  function offer() {
    const now = JSON.stringify(told.models.map((model) => [model.id, model.capabilities]));
    if (now === offered) return;
    offered = now;
    let shown = 0;
    for (const form of document.querySelectorAll("form[data-capability]")) {
      const able = told.models.filter((model) => model.capabilities.includes(form.dataset.capability));
      form.hidden = !able.length;
      shown += able.length;
      const before = form.model.value;
      form.model.replaceChildren(...able.map((model) => make("option", model.id, { value: model.id })));
      if (able.some((model) => model.id === before)) form.model.value = before;
    }
    $("try-none").hidden = shown > 0;
  }

  const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);
  const answerOf = (form) => form.querySelector(".answer");

  function rows(titles, body) {
    const table = make("table", undefined, { class: "wrap" }), [top, rest, line] = [make("thead"), make("tbody"), make("tr")];
    line.append(...titles.map((title) => make("th", title, { scope: "col" })));
    top.append(line);
    for (const [first, ...cells] of body) {
      const row = make("tr");
      row.append(make("th", first, { scope: "row" }), ...cells.map((cell) => make("td", cell)));
      rest.append(row);
    }
    table.append(top, rest);
    return table;
  }

  function scrolled(table, name) {
    const box = make("div", undefined, { class: "scroll", tabindex: "0", role: "region", "aria-label": name });
    box.append(table);
    return box;
  }

  function trying(id, work) {
    const form = $(id);
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const button = form.querySelector("[type=submit]"), begin = performance.now();
      button.disabled = true;
      try {
        await work(form, answerOf(form), () => seconds((performance.now() - begin) / 1000));
      } catch (error) {
        answerOf(form).append(make("p", error.name === "AbortError" ? "Stopped." : error.message, { class: "wrong" }));
      } finally {
        button.disabled = false;
      }
    });
  }

  trying("embed", async (form, answer, took) => {
    answer.replaceChildren();
    const texts = lines(form.texts.value);
    const found = await (await ask("/v1/embeddings", { model: form.model.value, input: texts })).json();
    const vectors = found.data.map((each) => each.embedding);
    const norm = (vector) => Math.sqrt(vector.reduce((total, each) => total + each * each, 0));
    const cosine = (one, other) => one.reduce((total, each, at) => total + each * other[at], 0) / (norm(one) * norm(other));
    const table = rows(["cosine", ...texts.map((_, at) => `${at + 1}`)],
      texts.map((text, at) => [`${at + 1} ${text.slice(0, 40)}`, ...vectors.map((other) => cosine(vectors[at], other).toFixed(3))]));
    answer.replaceChildren(make("p", `${vectors.length} vectors of ${number(vectors[0].length)} numbers, ` +
      `${number(found.usage.total_tokens)} tokens, ${took()}.`), scrolled(table, "Cosine of each pair"));
  });

  trying("rerank", async (form, answer, took) => {
    answer.replaceChildren();
    const documents = lines(form.documents.value);
    const found = await (await ask("/v1/rerank", { model: form.model.value, query: form.query.value, documents })).json();
    const table = rows(["document", "score"], found.results.map((each) => [documents[each.index], each.relevance_score.toFixed(4)]));
    answer.replaceChildren(make("p", `${documents.length} documents, ${took()}.`), scrolled(table, "Documents by relevance"));
  });

  let stopping = null;
  $("chat").stop.addEventListener("click", () => stopping?.abort());
  trying("chat", async (form, answer, took) => {
    const text = make("p", "", { class: "said" }), end = make("p", "", { class: "quiet" });
    answer.replaceChildren(text, end);
    // What comes piece by piece is read out once it is whole.
    answer.setAttribute("aria-busy", "true");
    stopping = new AbortController();
    form.stop.disabled = false;
    try {
      const body = {
        model: form.model.value, messages: [{ role: "user", content: form.message.value }], stream: true,
        max_tokens: Number(form.most.value), stream_options: { include_usage: true },
      };
      const reader = (await ask("/v1/chat/completions", body, stopping.signal)).body.pipeThrough(new TextDecoderStream()).getReader();
      let waiting = "", first = null, usage = null, reason = "";
      for (;;) {
        const { value: chunk, done } = await reader.read();
        if (done) break;
        const events = (waiting + chunk).split("\n\n");
        waiting = events.pop();
        for (const event of events) {
          if (!event.startsWith("data: {")) continue;
          const piece = JSON.parse(event.slice(6));
          if (piece.error) throw new Error(piece.error.message);
          first ??= took();
          usage = piece.usage || usage;
          const choice = piece.choices[0];
          text.append(choice?.delta.reasoning_content || "", choice?.delta.content || "");
          reason = choice?.finish_reason || reason;
        }
      }
      end.textContent = `${number(usage?.completion_tokens || 0)} tokens in ${took()}, the first after ${first}; ended by ${reason}.`;
    } finally {
      form.stop.disabled = true;
      answer.removeAttribute("aria-busy");
    }
  });

  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    key = $("key").value;
    $("key").value = "";
    poll();
  });
  // ---- What fits where, in a view of its own.

  const plans = livePlans(ask);
  const view = () => {
    const shown = new URLSearchParams(location.hash.slice(1)).get("view") === "plans" ? "plans" : "now";
    for (const name of ["now", "plans"]) {
      $(name + "-view").hidden = name !== shown;
      if (name === shown) $("to-" + name).setAttribute("aria-current", "page");
      else $("to-" + name).removeAttribute("aria-current");
    }
    // Charts that were drawn out of sight have no width.
    dispatchEvent(new Event("resize"));
    plans.visible(shown === "plans");
  };
  addEventListener("hashchange", view);
  swatches("rate-legend", SERIES.map(([name, , at]) => [name, COLOURS[at]]));
  follow(() => {
    chart?.destroy();
    chart = null;
    draw();
    plans.draw();
  });
  addEventListener("resize", () => $("rate").clientWidth && chart?.setSize({ width: $("rate").clientWidth, height: HEIGHT }));
  addEventListener("visibilitychange", () => !document.hidden && poll());
  view();
  poll();
})();
