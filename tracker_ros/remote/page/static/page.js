"use strict";
// The page: shows what comes over /live, and sends what the operator does. The messages are described in the server's
// commands.py and server.py. Everything foreign goes into the page as text, never as HTML.
(() => {
  const $ = (id) => document.getElementById(id);
  const canvas = $("picture"), stage = $("stage");
  const COLOURS = { IDLE: "#8793a0", TRACKING: "#3ddc60", UNCERTAIN: "#ffbe28", LOST: "#ff5a5a", STALE: "#8793a0" };
  const STATES = ["IDLE", "TRACKING", "UNCERTAIN", "LOST", "STALE"];
  const SPAN = 20000;          // ms of scores shown
  const OLD = 150;             // ms after which a box is no longer this picture's
  const TAP = 6;               // CSS pixels that a tap may wander

  let socket = null, retry = 500, requests = 0, share = 0.1, silenced = 0;
  let image = null;            // the picture on the screen: {bitmap, stamp, width, height}
  let state = { targets: [] };
  let drawing = null;          // {pointer, from, to, image}: the picture is held from the first touch on
  let selected = "";           // the target that boxes start anew; empty: a new one
  let heat = false;
  const cards = new Map(), waiting = new Map(), arrivals = [];

  // ---------------------------------------------------------------------------------------------------- connection

  function connect() {
    socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/live`);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => { retry = 500; if (heat) ask({ do: "heatmap", on: true }); };
    socket.onmessage = (event) => (typeof event.data === "string" ? answered(event.data) : receive(event.data));
    socket.onclose = (event) => {
      const why = event.reason || "no connection to the page's node";
      for (const settle of waiting.values()) settle({ ok: false, text: why });
      waiting.clear();
      cancel();
      link(false, `${why}; trying again`);
      setTimeout(connect, retry);
      retry = Math.min(retry * 2, 5000);
    };
  }

  function ask(command) {
    return new Promise((settle) => {
      if (socket.readyState !== WebSocket.OPEN) { settle({ ok: false, text: "there is no connection" }); return; }
      const id = ++requests;
      waiting.set(id, settle);
      socket.send(JSON.stringify({ ...command, id }));
    });
  }

  function answered(text) {
    const answer = JSON.parse(text);
    const settle = waiting.get(answer.answer);
    waiting.delete(answer.answer);
    (settle || say)(answer);
  }

  // Does what a button says, and shows the answer.
  async function carry(command, button) {
    if (button) button.disabled = true;
    const answer = await ask(command);
    if (button) button.disabled = false;
    say(answer);
    return answer.ok;
  }

  function say({ ok, text }) {
    if (!text) return;
    const box = $("message");
    box.textContent = text;
    box.classList.toggle("bad", !ok);
    box.hidden = false;
    clearTimeout(silenced);
    silenced = setTimeout(() => { box.hidden = true; }, ok ? 5000 : 15000);
  }

  function link(good, text) {
    $("link").className = `link ${good ? "good" : "bad"}`;
    $("link-text").textContent = text;
  }

  // -------------------------------------------------------------------------------------------------------- pictures

  async function receive(buffer) {
    const length = new DataView(buffer).getUint32(0);
    const message = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
    const jpeg = buffer.slice(4 + length);
    if (message.trackers) welcome(message);
    if (jpeg.byteLength) {
      try {
        const bitmap = await createImageBitmap(new Blob([jpeg], { type: "image/jpeg" }));
        // Pictures are decoded at the same time, and the newer one may be first.
        if (!image || message.n > image.n) {
          if (image && !(drawing && drawing.image === image)) image.bitmap.close();
          image = { bitmap, n: message.n, stamp: message.stamp, width: message.width, height: message.height };
          stage.style.setProperty("--aspect", `${image.width} / ${image.height}`);
          arrivals.push(performance.now());
        } else {
          bitmap.close();
        }
      } catch (error) {
        message.problem = `a picture can't be shown: ${error.message}`;
      }
    }
    if (message.targets) update(message);
    draw();
    if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ do: "seen", n: message.n }));
  }

  function welcome(message) {
    share = message.share;
    $("hint").textContent =
      "Drag a box around the target, or tap it: a tap takes a square of " +
      `${Math.round(100 * share)} % of the picture's shorter side.`;
    const menu = $("tracker");
    menu.replaceChildren(...message.trackers.map((name) => new Option(name, name)));
  }

  function update(message) {
    state = message;
    while (arrivals.length && arrivals[0] < performance.now() - 2000) arrivals.shift();
    const silent = message.silence === null || message.silence > 1.5;
    let notice = message.problem || "";
    if (message.silence === null) notice = "Waiting for the first image of the camera";
    else if (silent) notice = `No image from the camera for ${Math.round(message.silence)} s`;
    $("notice").textContent = notice;
    $("notice").hidden = !notice;
    if (message.paused) link(true, "paused");
    else if (!silent && !message.answering) link(false, "the tracker says nothing");
    else link(!silent, silent ? "no images" : `${Math.round(arrivals.length / 2)} pictures a second`);
    $("pause").setAttribute("aria-pressed", String(message.paused));
    $("pause").textContent = message.paused ? "Go on" : "Pause";
    const menu = $("tracker");
    if (message.tracker && !menu.disabled && document.activeElement !== menu) menu.value = message.tracker;
    targets(message.targets);
  }

  // --------------------------------------------------------------------------------------------------------- targets

  function targets(list) {
    const names = new Set(list.map((target) => target.id));
    for (const [name, card] of cards) {
      if (!names.has(name)) { card.item.remove(); cards.delete(name); }
    }
    if (selected && !names.has(selected)) select("");
    for (const target of list) {
      let card = cards.get(target.id);
      if (!card) { card = make(target.id); cards.set(target.id, card); }
      if (target.fresh) card.history = [];
      fill(card, target);
    }
    $("empty").hidden = list.length > 0;
    $("stop").disabled = list.length === 0;
  }

  function seen(target) {
    return target.state === "TRACKING" || target.state === "UNCERTAIN";
  }

  function make(name) {
    const item = $("card").content.cloneNode(true).firstElementChild;
    const part = (kind) => item.querySelector(`.${kind}`);
    const card = { item, part, history: [] };
    part("name").textContent = name;
    part("name").onclick = () => select(selected === name ? "" : name);
    part("one-stop").setAttribute("aria-label", `Stop ${name}`);
    part("one-stop").onclick = () => carry({ do: "stop", target: name }, part("one-stop"));
    part("first").alt = `${name} when its track began`;
    part("now").alt = `${name} when it was seen last`;
    $("targets").append(item);
    return card;
  }

  function select(name) {
    selected = name;
    for (const [id, card] of cards) {
      card.item.classList.toggle("selected", id === name);
      card.part("name").setAttribute("aria-pressed", String(id === name));
    }
    if (name) say({ ok: true, text: `The next box starts ${name} anew.` });
  }

  function fill(card, target) {
    const badge = card.part("state");
    badge.textContent = target.state;
    badge.className = `state ${target.state}`;
    card.part("score").textContent = target.score === null ? "–" : target.score.toFixed(2);
    card.part("reason").textContent = target.reason;
    card.part("reason").hidden = !target.reason;
    if (target.first) card.part("first").src = target.first;
    if (target.now) card.part("now").src = target.now;
    card.part("when").textContent = seen(target) ? "now" : "last seen";
    card.history.push(...target.scores);
    const newest = card.history.length ? card.history[card.history.length - 1][0] : 0;
    while (card.history.length && card.history[0][0] < newest - SPAN) card.history.shift();
    plot(card.part("scores"), card.history, newest);
    card.part("scores").setAttribute("aria-label", `score ${card.part("score").textContent}, ${target.state}`);
  }

  function plot(chart, history, newest) {
    const { context, width, height } = sized(chart);
    const x = (when) => width * (1 - (newest - when) / SPAN), y = (score) => 3 + (height - 6) * (1 - score);
    context.strokeStyle = "#2e3741";
    context.lineWidth = 1;
    context.beginPath();
    for (const level of [0, 0.5, 1]) { context.moveTo(0, y(level)); context.lineTo(width, y(level)); }
    context.stroke();
    context.lineWidth = 2;
    context.lineJoin = "round";
    for (let i = 1; i < history.length; i += 1) {
      const [t0, s0] = history[i - 1], [t1, s1, kind] = history[i];
      if (s0 === null || s1 === null || t1 - t0 > 2000) continue;
      context.strokeStyle = COLOURS[STATES[kind]] || COLOURS.IDLE;
      context.beginPath();
      context.moveTo(x(t0), y(s0));
      context.lineTo(x(t1), y(s1));
      context.stroke();
    }
  }

  // --------------------------------------------------------------------------------------------------------- drawing

  // The context of a canvas whose pixels are the screen's, cleared, with CSS pixels as unit.
  function sized(element) {
    const ratio = window.devicePixelRatio || 1;
    const width = element.clientWidth, height = element.clientHeight;
    if (element.width !== Math.round(width * ratio) || element.height !== Math.round(height * ratio)) {
      element.width = Math.round(width * ratio);
      element.height = Math.round(height * ratio);
    }
    const context = element.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    return { context, width, height };
  }

  // Where the picture lies in the canvas, CSS pixels.
  function place(shown) {
    const scale = Math.min(canvas.clientWidth / shown.width, canvas.clientHeight / shown.height);
    return {
      scale,
      left: (canvas.clientWidth - shown.width * scale) / 2,
      top: (canvas.clientHeight - shown.height * scale) / 2,
    };
  }

  function draw() {
    const shown = drawing ? drawing.image : image;
    const { context } = sized(canvas);
    if (!shown) return;
    const { scale, left, top } = place(shown);
    context.drawImage(shown.bitmap, left, top, shown.width * scale, shown.height * scale);
    context.save();
    context.beginPath();
    context.rect(left, top, shown.width * scale, shown.height * scale);
    context.clip();
    for (const target of drawing ? drawing.targets : state.targets) outline(context, target, scale, left, top);
    context.restore();
    if (drawing && drawing.to) rubber(context, scale, left, top);
  }

  function outline(context, target, scale, left, top) {
    if (!target.box) return;
    const [x, y, w, h] = target.box.map((value) => value * scale);
    const current = seen(target) && Math.abs(target.age) <= OLD;
    const strokes = [["rgb(15 18 22 / 70%)", 4], [COLOURS[target.state], 2]];
    for (const [colour, thickness] of strokes) {
      context.strokeStyle = colour;
      context.lineWidth = thickness;
      context.setLineDash(current ? [] : [6, 5]);
      context.strokeRect(left + x, top + y, w, h);
    }
    context.setLineDash([]);
    const text = target.state === "LOST" ? `${target.id}: last seen here` : target.id;
    context.font = "600 13px system-ui, 'DejaVu Sans', sans-serif";
    const room = context.measureText(text).width + 10;
    const tx = Math.max(left, Math.min(left + x - 1, canvas.clientWidth - left - room));
    const ty = top + y > top + 22 ? top + y - 21 : Math.min(top + y + h + 3, canvas.clientHeight - top - 19);
    context.fillStyle = COLOURS[target.state];
    context.fillRect(tx, ty, room, 19);
    context.fillStyle = "#0f1216";
    context.fillText(text, tx + 5, ty + 14);
  }

  function rubber(context, scale, left, top) {
    const { from, to } = drawing;
    const x = left + Math.min(from.x, to.x) * scale, y = top + Math.min(from.y, to.y) * scale;
    const w = Math.abs(to.x - from.x) * scale, h = Math.abs(to.y - from.y) * scale;
    for (const [colour, thickness] of [["rgb(15 18 22 / 80%)", 4], ["#ffffff", 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = thickness;
      context.strokeRect(x, y, w, h);
    }
  }

  // In pixels of the picture, kept inside it.
  function point(event, shown) {
    const edges = canvas.getBoundingClientRect(), { scale, left, top } = place(shown);
    return {
      x: Math.min(Math.max((event.clientX - edges.left - left) / scale, 0), shown.width),
      y: Math.min(Math.max((event.clientY - edges.top - top) / scale, 0), shown.height),
    };
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (drawing) { cancel(); return; }  // A second finger: not a box after all.
    if (!image || event.button !== 0) return;
    event.preventDefault();
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    const from = point(event, image);
    drawing = { pointer: event.pointerId, from, to: null, start: event, image, targets: state.targets };
    $("frozen").hidden = false;
  });

  canvas.addEventListener("pointermove", (event) => {
    if (!drawing || event.pointerId !== drawing.pointer) return;
    const moved = Math.hypot(event.clientX - drawing.start.clientX, event.clientY - drawing.start.clientY);
    if (moved > TAP || drawing.to) drawing.to = point(event, drawing.image);
    draw();
  });

  canvas.addEventListener("pointerup", (event) => {
    if (!drawing || event.pointerId !== drawing.pointer) return;
    const { from, to, image: shown } = drawing;
    cancel();
    const command = { do: "start", stamp: shown.stamp, target: selected || unused() };
    if (to) {
      command.box = [Math.min(from.x, to.x), Math.min(from.y, to.y), Math.abs(to.x - from.x), Math.abs(to.y - from.y)];
    } else {
      command.point = [from.x, from.y];
    }
    carry(command);
  });

  canvas.addEventListener("pointercancel", cancel);
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  window.addEventListener("keydown", (event) => { if (event.key === "Escape") cancel(); });
  window.addEventListener("resize", draw);

  function cancel() {
    if (drawing && drawing.image !== image) drawing.image.bitmap.close();
    drawing = null;
    $("frozen").hidden = true;
    draw();
  }

  function unused() {
    let number = 1;
    while (cards.has(`target-${number}`)) number += 1;
    return `target-${number}`;
  }

  // --------------------------------------------------------------------------------------------------------- buttons

  $("stop").onclick = () => carry({ do: "stop", target: "" }, $("stop"));
  $("pause").onclick = () => carry({ do: "pause", paused: !state.paused }, $("pause"));
  $("heatmap").onclick = async () => {
    if (!(await carry({ do: "heatmap", on: !heat }, $("heatmap")))) return;
    heat = !heat;
    $("heatmap").setAttribute("aria-pressed", String(heat));
  };
  $("tracker").onchange = async () => {
    const menu = $("tracker");
    say({ ok: true, text: `Loading ${menu.value} …` });
    await carry({ do: "tracker", name: menu.value }, menu);
    menu.blur();
  };

  $("stop").disabled = true;
  connect();
})();
