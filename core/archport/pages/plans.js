"use strict";
// The plan explorer: what fits where, of planned points alone.
// keep(chosen): told what is shown, for links. load(device): brings the plans of a device that has none yet.
const explorer = ({ keep, load }) => {
  const chosen = { device: "", form: "", context: 0, batch: 0 };
  let data = null, offered = [], chart = null, wanted = "";

  const formOf = (device, form) => data.forms.find((each) => each.device === device && each.form === form);
  const pointOf = (form, context, batch) => {
    const cell = form.points[context * data.batches.length + batch];
    if (cell.length === 2) return { fits: false, why: form.texts[cell[0]], needs: cell[1] };
    const [peak, numbered, prefill, decoding, chunk, paths] = cell;
    const sizes = Object.fromEntries(Object.entries(numbered).map(([index, size]) => [form.components[index], size]));
    return { fits: true, peak, sizes, prefill, decoding, chunk, paths: paths.map((index) => form.texts[index]) };
  };

  function draw() {
    if (!data) return;
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
    keep(chosen);
  }

  function drawVerdict(form, point) {
    const box = $("verdict");
    box.className = "verdict " + (point.fits ? "fits" : "not");
    const head = point.fits
      ? `✓ Fits: ${bytes(point.peak)} at the peak, of ${bytes(form.budget)}`
      : "✗ Does not fit";
    const whole = form.longest === data.contexts.at(-1) ? ", all that the model takes" : "";
    const longest = form.longest
      ? `The longest context of one row here is ${number(form.longest)} tokens${whole}.`
      : "No context of one row fits here.";
    box.replaceChildren(head, make("small", point.fits ? longest : `${point.why} ${longest}`));
  }

  const colour = (component) => COLOURS[data.components.indexOf(component) % COLOURS.length];

  function drawChart(form) {
    const count = data.batches[chosen.batch];
    $("chart-batch").textContent = count === 1 ? "one row" : count + " rows";
    const points = data.contexts.map((_, index) => pointOf(form, index, chosen.batch));
    const used = data.components.filter((name) => points.some((p) => p.fits && p.sizes[name]));
    const x = data.contexts.map((_, index) => index);
    // Stacked: each series is the sum up to its component, the whole stack is drawn first.
    let sums = x.map(() => 0);
    const stacked = used.map((name) => {
      sums = sums.map((sum, at) => sum + (points[at].fits ? points[at].sizes[name] || 0 : 0));
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
    swatches("legend", [...used.map((name) => [name, colour(name)]), ["budget (dashed)", "currentColor"]]);
    const none = points.filter((each) => !each.fits).length;
    $("chart-text").textContent =
      `Bars are planned points; ${!none ? "all contexts fit" : none === 1 ? "1 context does not fit and has no bar" :
        none + " contexts do not fit and have no bar"}. ` +
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
    bar("time", whole ? [[point.prefill / whole, COLOURS[0]], [point.decoding / whole, COLOURS[1]]] : []);
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
    }), make("p", `Prefill in chunks of ${number(point.chunk)} token${point.chunk === 1 ? "" : "s"}.`));
  }

  async function choose(change) {
    if (change.device) wanted = change.device;
    if (change.device && load && !data.forms.some((form) => form.device === change.device)) {
      const plans = data;
      await load(change.device);
      // Another device or model may have been chosen meanwhile, or this one could not be planned.
      if (plans !== data || wanted !== change.device || !data.forms.some((form) => form.device === change.device)) {
        $("device").value = chosen.device;
        return;
      }
    }
    Object.assign(chosen, change);
    const forms = data.forms.filter((form) => form.device === chosen.device);
    if (!formOf(chosen.device, chosen.form)) chosen.form = forms[0].form;
    fill("form", forms.map((form) => [form.form, form.form]), chosen.form);
    $("device").value = chosen.device;
    draw();
  }

  // More devices of the model that is shown.
  function add(plans) {
    data.components.push(...plans.components.filter((name) => !data.components.includes(name)));
    for (const form of plans.forms) data.forms.push({ ...form, texts: plans.texts, components: plans.components });
    Object.assign(data.devices, plans.devices);
    data.forms.sort((one, other) => offered.indexOf(one.device) - offered.indexOf(other.device));
  }

  // The plans of a model; `names` of devices to choose from, `linked` what a link said.
  function show(plans, names, linked) {
    offered = names;
    data = { ...plans, components: [], forms: [], devices: {} };
    add(plans);
    $("planned").textContent = (data.new_tokens ? `Chats with ${number(data.new_tokens)} new tokens` : "Texts to embed") +
      `, up to ${number(data.contexts.at(-1))} tokens a row.`;
    $("notes").textContent = "Every point is a plan of its own, as archport plan --json prints it; nothing between points is " +
      "guessed, and rows beyond a number that does not fit are not tried. Times are estimates from each device's rates. Budgets of devices that are not this machine are estimates." +
      (data.forms.some((form) => form.estimated) ? " Weights marked by bits are estimated from the config." : "");
    fill("device", names.map((name) => [name, data.devices[name]?.simulated === false ? `This machine: ${name}` : name]));
    const start = { device: data.forms[0].device, form: data.forms[0].form, context: Math.floor(data.contexts.length / 2), batch: 0 };
    for (const [id, values] of [["context", data.contexts], ["batch", data.batches]]) {
      $(id).max = values.length - 1;
      const at = Number(linked.get(id));
      if (linked.has(id) && Number.isInteger(at) && at >= 0 && at < values.length) start[id] = at;
    }
    if (formOf(linked.get("device"), linked.get("form"))) {
      Object.assign(start, { device: linked.get("device"), form: linked.get("form") });
    }
    choose(start);
  }

  function fill(id, options, value) {
    $(id).replaceChildren(...options.map(([name, text]) => make("option", text, { value: name })));
    if (value !== undefined) $(id).value = value;
  }

  for (const id of ["device", "form"]) $(id).addEventListener("change", (event) => choose({ [id]: event.target.value }));
  for (const id of ["context", "batch"]) $(id).addEventListener("input", (event) => choose({ [id]: Number(event.target.value) }));
  addEventListener("resize", () => $("chart").clientWidth && chart?.setSize({ width: $("chart").clientWidth, height: 300 }));
  return { add, choose, draw, drawDevices, fill, show, has: (device) => data.forms.some((form) => form.device === device) };
};
