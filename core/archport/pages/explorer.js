"use strict";
(async () => {
  // Base64 of gzipped JSON: of sixty devices a sixth of what it is in plain.
  const packed = Uint8Array.from(atob($("data").textContent), (byte) => byte.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const data = await new Response(unpacked).json();
  $("title").textContent = data.title;
  document.title = data.title + ": what fits where";
  // So that a link shows the same point.
  const plans = explorer({ keep: (chosen) => history.replaceState(null, "", "#" + new URLSearchParams(chosen)) });
  plans.show(data, Object.keys(data.devices), new URLSearchParams(location.hash.slice(1)));
  follow(plans.draw);
})();
