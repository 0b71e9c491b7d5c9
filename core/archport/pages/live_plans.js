"use strict";
// The plan explorer in the server's page: it asks for plans when it is first opened, one device at a time.
const livePlans = (ask) => {
  const CHAT = "256", EVERY = 1000;
  const WORK = { [CHAT]: `Chats with ${CHAT} new tokens`, 0: "Texts to embed" };
  // Of the link that was followed, until the reader chooses something else.
  let linked = new URLSearchParams(location.hash.slice(1));
  let models = [], profiles = [], shown = false, opened = "", comparing = false, failed = false, latest = null;

  const plans = explorer({
    keep: (chosen) => {
      latest = { view: "plans", model: $("model").value, new: $("work").value, ...chosen };
      if (shown) history.replaceState(null, "", "#" + new URLSearchParams(latest));
      offerComparison();
    },
    load: async (device) => {
      const planned = await fetched(device);
      if (planned) plans.add(planned);
    },
  });

  const question = () => `${$("model").value}\n${$("work").value}`;

  // The plans of a device, null for this machine; nothing where the reader has turned to another model.
  async function fetched(device) {
    const asked = question();
    const query = new URLSearchParams({ model: $("model").value, new: $("work").value, ...(device && { device }) });
    try {
      for (;;) {
        const answer = await ask("/plans.json?" + query);
        const told = await answer.json();
        if (asked !== question()) return null;
        if (answer.status !== 202) {
          tell("");
          return told;
        }
        const { ahead, seconds: taken } = told;
        tell(`Planning for ${device || "this machine"}` + (ahead ? `, after ${ahead} others.` :
          taken > 3 ? `, for ${Math.floor(taken / 5) * 5 || 3} s now. It runs when the server has nothing better to do.` : "."));
        await new Promise((done) => setTimeout(done, EVERY));
      }
    } catch (error) {
      if (asked !== question()) return null;
      tell(`${device || "This machine"} could not be planned: ${error.message}`, true);
      // Once the view is opened again, and not at every look of the page.
      if (!device) failed = true;
      return null;
    }
  }

  function tell(text, wrong = false) {
    setText("planning", text);
    $("planning").classList.toggle("not", wrong);
  }

  // Plans of this machine first; those of the others once they are chosen.
  async function open() {
    if (!shown || !models.length || opened === question()) return;
    opened = question();
    comparing = false;
    const planned = await fetched(null);
    if (!planned) return;
    const own = Object.keys(planned.devices)[0];
    $("plans").hidden = false;
    plans.show(planned, [own, ...profiles.filter((name) => name !== own)], linked);
    const device = linked.get("device");
    if (device && device !== own && profiles.includes(device)) {
      await plans.choose({ device, ...(linked.has("form") && { form: linked.get("form") }) });
    }
    linked = new URLSearchParams();
  }

  const missing = () => profiles.filter((name) => !plans.has(name));

  function offerComparison() {
    const left = missing().length;
    $("compare").hidden = !left;
    $("compare").textContent = comparing ? `Stop (${left} left)` : `Plan the other ${left} devices, too`;
  }

  async function compare() {
    comparing = !comparing;
    const asked = question();
    for (const device of comparing ? missing() : []) {
      if (!comparing || asked !== question()) break;
      const planned = await fetched(device);
      if (!planned) break;
      plans.add(planned);
      plans.drawDevices();
      offerComparison();
    }
    comparing = false;
    offerComparison();
  }

  function offer(told) {
    const now = told.models.map((model) => model.id);
    if (JSON.stringify(now) !== JSON.stringify(models.map((model) => model.id))) {
      models = told.models;
      profiles = told.profiles;
      const before = $("model").value || linked.get("model");
      plans.fill("model", now.map((id) => [id, id]), now.includes(before) ? before : now[0]);
      work(linked.get("new"));
    }
    open();
  }

  // What the model can be asked for.
  function work(wish) {
    const can = models.find((model) => model.id === $("model").value)?.capabilities || [];
    const able = [...(can.includes("generate") ? [CHAT] : []), ...(can.includes("embed") || !can.includes("generate") ? ["0"] : [])];
    plans.fill("work", able.map((name) => [name, name === "0" && !can.includes("embed") ? "Texts to read" : WORK[name]]),
      able.includes(wish) ? wish : able[0]);
    $("work-label").hidden = able.length < 2;
  }

  $("model").addEventListener("change", () => {
    work();
    open();
  });
  $("work").addEventListener("change", open);
  $("compare").addEventListener("click", compare);
  return {
    draw: plans.draw,
    offer,
    visible: (now) => {
      shown = now;
      if (failed) opened = "";
      failed = false;
      if (shown && latest) history.replaceState(null, "", "#" + new URLSearchParams(latest));
      open();
    },
  };
};
