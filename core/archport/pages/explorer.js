"use strict";
(async () => {
  // Base64 of gzipped JSON: of sixty devices a sixth of what it is in plain.
  const packed = Uint8Array.from(atob(document.getElementById("data").textContent), (byte) => byte.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const data = await new Response(unpacked).json();
  const chosen = { device: data.forms[0].device, form: data.forms[0].form, context: 0, batch: 0 };
  let chart = null;

  const formOf = (device, form) => data.forms.find((each) => each.device === device && each.form === form);
  const pointOf = (form, context, batch) => {
    const cell = form.points[context * data.batches.length + batch];
    if (cell.length === 2) return { fits: false, why: data.texts[cell[0]], needs: cell[1] };
    const [peak, sizes, prefill, decoding, chunk, paths] = cell;
    return { fits: true, peak, sizes, prefill, decoding, chunk, paths: paths.map((index) => data.texts[index]) };
  };

  function draw() {
    const form = formOf(chosen.device, chosen.form);
    const point = pointOf(form, chosen.context, chosen.batch);
    $("context-value").textContent = number(data.contexts[chosen.context]) + " tokens";
    $("batch-value").textContent = data.batches[chosen.batch] + (data.batches[chosen.batch] === 1 ? " row" : " rows");
    for (const id of ["context", "batch"]) {
      $(id).value = chosen[id];
      $(id).setAttribute("aria-valuetext", $(id + "-value").textContent);
    }
    drawVerdict(form, point);
    drawChart(form);
    drawGrid(form);
    drawForms();
    drawTime(point);
    drawPaths(point);
    drawDevices();
    // So that a link shows the same point.
    const hash = new URLSearchParams(Object.entries(chosen)).toString();
    history.replaceState(null, "", "#" + hash);
  }

  function drawVerdict(form, point) {
    const box = $("verdict");
    box.className = "verdict " + (point.fits ? "fits" : "not");
    const head = point.fits
      ? `✓ Fits: ${bytes(point.peak)} at the peak of ${bytes(form.budget)}`
      : "✗ Does not fit";
    const whole = form.longest === data.contexts.at(-1) ? ", all that the model takes" : "";
    const longest = form.longest
      ? `The longest context of one row here is ${number(form.longest)} tokens${whole}.`
      : "No context of one row fits here.";
    box.replaceChildren(head, make("small", point.fits ? longest : `${point.why} ${longest}`));
  }

  const colour = (index) => COLOURS[index % COLOURS.length];

  function drawChart(form) {
    const count = data.batches[chosen.batch];
    $("chart-batch").textContent = count === 1 ? "one row" : count + " rows";
    const points = data.contexts.map((_, index) => pointOf(form, index, chosen.batch));
    const used = data.components.map((_, index) => index).filter((index) => points.some((p) => p.fits && p.sizes[index]));
    const x = data.contexts.map((_, index) => index);
    // Stacked: each series is the sum up to its component, the whole stack is drawn first.
    let sums = x.map(() => 0);
    const stacked = used.map((index) => {
      sums = sums.map((sum, at) => sum + (points[at].fits ? points[at].sizes[index] || 0 : 0));
      return sums.map((sum, at) => (points[at].fits ? sum : null));
    });
    const text = getComputedStyle(document.body).color;
    const bars = uPlot.paths.bars({ size: [0.7, 60] });
    const options = {
      width: $("chart").clientWidth || 320,
      height: 300,
      legend: { show: false },
      cursor: { x: false, y: false, points: { show: false }, drag: { x: false, y: false } },
      scales: { x: { time: false, range: [-0.6, x.length - 0.4] },
                y: { range: (_, low, high) => [0, Math.max(high, form.budget) * 1.06] } },
      axes: [
        { stroke: text, grid: { show: false }, ticks: { show: false }, splits: () => x,
          values: (chart, ticks) => ticks.map((at) => short(data.contexts[at], at, chart.width)) },
        { stroke: text, grid: { stroke: "rgba(128,128,128,.25)" }, size: 68,
          values: (_, ticks) => ticks.map((tick) => (tick ? bytes(tick) : "0")) },
      ],
      series: [{}, ...used.map((_, at) => used.length - 1 - at).map((at) => ({
        fill: colour(used[at]), stroke: colour(used[at]), width: 0, paths: bars, points: { show: false } })),
        { stroke: text, width: 2, dash: [8, 5], points: { show: false } }],
    };
    const values = [x, ...stacked.toReversed(), x.map(() => form.budget)];
    if (chart) chart.destroy();
    chart = new uPlot(options, values, $("chart"));
    chart.over.style.cursor = "pointer";
    chart.over.addEventListener("click", (event) => {
      const at = Math.round(chart.posToVal(event.offsetX, "x"));
      choose({ context: Math.min(Math.max(at, 0), x.length - 1) });
    });
    $("legend").replaceChildren(
      ...used.map((index) => make("span", data.components[index], { style: `--swatch: ${colour(index)}` })),
      make("span", "budget (dashed)", { style: "--swatch: currentColor" }));
    const none = points.filter((each) => !each.fits).length;
    $("chart-text").textContent =
      `Bars are planned points; ${none ? none + " of them do not fit and have none" : "all of them fit"}. ` +
      `The dashed line is the budget of ${bytes(form.budget)}.`;
  }

  const short = (context, at, width) => {
    if (width < 520 && at % 3) return "";
    if (context < 1024) return String(context);
    const thousands = context / 1024;
    return (Number.isInteger(thousands) ? thousands : thousands.toFixed(1)) + "k";
  };

  function drawGrid(form) {
    const focused = document.activeElement?.dataset?.point;
    const head = make("tr");
    head.append(make("th", "context", { scope: "col" }));
    for (const batch of data.batches) head.append(make("th", batch + (batch === 1 ? " row" : " rows"), { scope: "col" }));
    const body = data.contexts.map((context, at) => {
      const row = make("tr");
      row.append(make("th", number(context), { scope: "row" }));
      data.batches.forEach((batch, column) => {
        const point = pointOf(form, at, column);
        const button = make("button", point.fits ? bytes(point.peak) : "✗", {
          type: "button", class: point.fits ? "fits" : "not", "data-point": `${at},${column}`,
          "aria-pressed": at === chosen.context && column === chosen.batch,
          "aria-label": `${number(context)} tokens, ${batch} rows: ${point.fits ? bytes(point.peak) : "does not fit"}`,
        });
        button.addEventListener("click", () => choose({ context: at, batch: column }));
        const cell = make("td");
        cell.append(button);
        row.append(cell);
      });
      return row;
    });
    const [top, rest] = [make("thead"), make("tbody")];
    top.append(head);
    rest.append(...body);
    $("grid").replaceChildren(top, rest);
    if (focused) $("grid").querySelector(`[data-point="${focused}"]`)?.focus();
  }

  function table(id, titles, rows) {
    const [head, body] = [make("thead"), make("tbody")];
    const line = make("tr");
    line.append(...titles.map((title) => make("th", title, { scope: "col" })));
    head.append(line);
    for (const { cells, now } of rows) {
      const row = make("tr", undefined, now ? { class: "chosen" } : {});
      row.append(make("th", (now ? "▸ " : "") + cells[0], { scope: "row" }), ...cells.slice(1).map((text) => make("td", text)));
      body.append(row);
    }
    $(id).replaceChildren(head, body);
  }

  const row = (name, form, now) => {
    const point = pointOf(form, chosen.context, chosen.batch);
    const tail = form.longest ? number(form.longest) : "none";
    if (!point.fits) return { cells: [name, "✗", "", "", tail], now };
    return { cells: [name, bytes(point.peak), seconds(point.prefill), seconds(point.decoding), tail], now };
  };
  const TITLES = ["peak", "prefill", "decoding", "longest context"];

  function drawForms() {
    const forms = data.forms.filter((form) => form.device === chosen.device);
    table("forms", ["weights", ...TITLES], forms.map((form) => row(form.form, form, form.form === chosen.form)));
  }

  function drawDevices() {
    const forms = data.forms.filter((form) => form.form === chosen.form);
    table("devices", ["device", ...TITLES], forms.map((form) => row(form.device, form, form.device === chosen.device)));
  }

  function drawTime(point) {
    const whole = point.fits ? point.prefill + point.decoding : 0;
    $("time").replaceChildren(...(whole ? [["prefill", point.prefill, 0], ["decoding", point.decoding, 1]] : [])
      .map(([, time, at]) => make("div", "", { style: `flex: ${time / whole}; background: ${colour(at)}` })));
    $("time-text").textContent = !point.fits ? "There is no plan to time." :
      data.new_tokens
        ? `Prefill ${seconds(point.prefill)}, decoding ${number(data.new_tokens)} tokens ${seconds(point.decoding)}, estimated.`
        : `Prefill ${seconds(point.prefill)}, estimated; nothing is decoded.`;
  }

  function drawPaths(point) {
    if (!point.fits) return $("paths").replaceChildren(make("p", "There is no plan."));
    $("paths").replaceChildren(...point.paths.map((text) => {
      const [kind, name, ...against] = text.split("\n");
      const box = make("div", undefined, { class: "path" });
      box.append(make("div", kind), make("strong", name), make("ul"));
      box.lastChild.append(...against.map((line) => make("li", "not " + line)));
      if (!against.length) box.lastChild.remove();
      return box;
    }), make("p", `Prefill in chunks of ${number(point.chunk)} tokens.`));
  }

  function choose(change) {
    Object.assign(chosen, change);
    if (!formOf(chosen.device, chosen.form)) {
      chosen.form = data.forms.find((form) => form.device === chosen.device).form;
    }
    fill("form", data.forms.filter((form) => form.device === chosen.device).map((form) => form.form));
    $("device").value = chosen.device;
    draw();
  }

  function fill(id, names) {
    $(id).replaceChildren(...names.map((name) => make("option", name, { value: name })));
    $(id).value = chosen[id];
  }

  $("title").textContent = data.title;
  document.title = data.title + ": what fits where";
  $("about").textContent = (data.new_tokens ? `Chats with ${number(data.new_tokens)} new tokens` : "Texts to embed") +
    `, up to ${number(data.contexts.at(-1))} tokens a row`;
  const guessed = data.forms.some((form) => form.estimated);
  $("notes").textContent = "Every point is a plan of its own, as archport plan --json prints it; nothing between points is " +
    "guessed, and rows beyond a number that does not fit are not tried. Times are estimates from each device's rates. Budgets of devices that are not this machine are estimates." +
    (guessed ? " Weights marked by bits are estimated from the config." : "");
  fill("device", Object.keys(data.devices));
  $("context").max = data.contexts.length - 1;
  $("batch").max = data.batches.length - 1;
  for (const id of ["device", "form"]) $(id).addEventListener("change", (event) => choose({ [id]: event.target.value }));
  for (const id of ["context", "batch"]) $(id).addEventListener("input", (event) => choose({ [id]: Number(event.target.value) }));
  follow(draw);
  addEventListener("resize", () => chart && chart.setSize({ width: $("chart").clientWidth, height: 300 }));
  const linked = new URLSearchParams(location.hash.slice(1));
  const start = { context: Math.floor(data.contexts.length / 2), batch: 0 };
  for (const id of ["context", "batch"]) {
    const at = Number(linked.get(id));
    if (linked.has(id) && Number.isInteger(at) && at >= 0 && at <= Number($(id).max)) start[id] = at;
  }
  if (formOf(linked.get("device"), linked.get("form"))) {
    Object.assign(start, { device: linked.get("device"), form: linked.get("form") });
  }
  choose(start);
})();
