"use strict";
(() => {
  const tasks = JSON.parse(document.getElementById("data").textContent);
  const field = (id) => document.getElementById(id);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const phone = matchMedia("(max-width: 600px)");
  const colours = {
    light: ["#0a5fb4", "#c2410c", "#0f766e", "#a21caf", "#6d5f00", "#4338ca", "#be123c", "#3f6212", "#7c2d12", "#0e7490"],
    dark: ["#6cb2ff", "#ff9f5a", "#4fd1c5", "#f0a0ff", "#e3cf4a", "#a5a2ff", "#ff8fa3", "#a3d977", "#e0a58c", "#67d8ef"],
  };
  const symbols = ["circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star"];
  const names = [...new Set(tasks.flatMap((task) => task.lines.map((line) => line.name)))].sort();

  const wanted = () => ({
    task: field("task").value,
    budget: field("budget").value,
    recipe: field("recipe").value.trim().toLowerCase(),
    controls: field("controls").checked,
    axis: document.querySelector("input[name=axis]:checked").value,
  });
  const fits = (want, one) =>
    (!want.task || one.task === want.task) &&
    (!want.budget || one.budget === want.budget) &&
    one.name.toLowerCase().includes(want.recipe) &&
    (want.controls || !one.control);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // A recipe keeps its colour and symbol in every plot.
  function trace(name, lines, want) {
    const place = names.indexOf(name);
    const palette = colours[dark.matches ? "dark" : "light"];
    const colour = palette[place % palette.length];
    const symbol = symbols[(place + Math.floor(place / palette.length)) % symbols.length];
    const control = lines[0].control;
    const x = lines.map((line) => line[want.axis][0]);
    return {
      name: name + (control ? "*" : ""), x, y: lines.map((line) => line.value),
      mode: "lines+markers", line: { color: colour, width: 1.5, dash: control ? "dot" : "solid" },
      marker: { color: colour, size: 9, symbol: symbol + (control ? "-open" : "") },
      error_y: {
        type: "data", symmetric: false, thickness: 1, width: 3, color: colour,
        array: lines.map((line) => line.high - line.value),
        arrayminus: lines.map((line) => line.value - line.low),
      },
      error_x: {
        type: "data", symmetric: false, thickness: 1, width: 3, color: colour,
        array: lines.map((line, i) => line[want.axis][2] - x[i]),
        arrayminus: lines.map((line, i) => x[i] - line[want.axis][1]),
      },
      text: lines.map((line) => line.text), hovertemplate: "%{text}<extra></extra>",
    };
  }

  // The interval of a few samples may go beyond what a score can be.
  function reach(lines) {
    const values = lines.map((line) => line.value);
    const low = Math.max(Math.min(...lines.map((line) => line.low)), Math.min(0, ...values));
    const high = Math.min(Math.max(...lines.map((line) => line.high)), Math.max(1, ...values));
    const room = 0.05 * (high - low || 1);
    return [low - room, high + room];
  }

  function draw(task, want) {
    const shown = task.lines.filter((line) => fits(want, line) && line[want.axis].length);
    const groups = new Map();
    for (const line of shown) groups.set(line.name, [...(groups.get(line.name) ?? []), line]);
    const traces = [...groups].sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, lines]) =>
      trace(name, lines.sort((a, b) => a[want.axis][0] - b[want.axis][0]), want));
    const bare = task.bare;
    if (bare) {
      traces.push({
        name: "bare", x: [1], y: [bare.value], mode: "markers", text: [bare.text],
        marker: { color: css("--text"), size: 12, symbol: "star" }, hovertemplate: "%{text}<extra></extra>",
        error_y: { type: "data", symmetric: false, thickness: 1, width: 3, array: [bare.high - bare.value], arrayminus: [bare.value - bare.low] },
      });
    }
    const drawn = bare ? [...shown, bare] : shown;
    const range = drawn.length ? reach(drawn) : undefined;
    const axis = {
      gridcolor: css("--line"), linecolor: css("--line"), zeroline: false, automargin: true,
    };
    const label = want.axis === "time" ? "time, relative to the bare model" : "operations, relative to the bare model";
    const named = traces.length; // the legend needs room: to the right, or on a phone below
    const layout = {
      height: phone.matches ? 420 + 24 * Math.ceil(named / 2) : Math.max(460, 80 + 20 * named),
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: css("--text"), family: "system-ui, sans-serif" },
      margin: { l: 50, r: 10, t: 10, b: 50 }, hovermode: "closest",
      xaxis: { ...axis, title: { text: label } }, yaxis: { ...axis, range, title: { text: task.metric } },
      hoverlabel: { bgcolor: css("--panel"), bordercolor: css("--line"), font: { color: css("--text") } },
      legend: phone.matches ? { orientation: "h", yanchor: "top", y: -0.2 } : {}, showlegend: true,
      shapes: bare ? [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: bare.value, y1: bare.value, line: { color: css("--soft"), width: 1, dash: "dash" } }] : [],
      annotations: shown.length ? [] : [{ text: "no measurement fits the filters", showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 }],
    };
    Plotly.react(field(task.id), traces, layout, { responsive: true, displayModeBar: false });
  }

  function update() {
    const want = wanted();
    const rows = [...document.querySelectorAll("tr[data-name], figure[data-name]")];
    for (const row of rows) {
      const { task, name, budget, control } = row.dataset;
      row.hidden = name !== "bare"
        ? !fits(want, { task, name, budget, control: control === "1" })
        : Boolean(want.task && task !== want.task);
    }
    const own = rows.filter((row) => row.closest("#rows"));
    field("count").textContent = `${own.filter((row) => !row.hidden).length} of ${own.length} lines`;
    for (const section of document.querySelectorAll("section[data-task]")) {
      section.hidden = Boolean(want.task && section.dataset.task !== want.task);
    }
    for (const task of tasks) if (!want.task || task.task === want.task) draw(task, want);
  }

  function sort(th) {
    const ascending = th.getAttribute("aria-sort") !== "ascending";
    for (const other of th.parentElement.children) other.removeAttribute("aria-sort");
    th.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const column = th.cellIndex;
    const body = field("rows").tBodies[0];
    const value = (row) => row.cells[column].dataset.value ?? "";
    const numeric = th.dataset.kind === "number";
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === ""); // what is missing comes last
      return (ascending ? 1 : -1) * (numeric ? x - y : x.localeCompare(y));
    });
    body.append(...rows);
  }

  for (const th of document.querySelectorAll("#rows thead th")) {
    th.querySelector("button").addEventListener("click", () => sort(th));
  }
  field("filters").addEventListener("input", update);
  field("filters").addEventListener("submit", (event) => event.preventDefault());
  dark.addEventListener("change", update);
  phone.addEventListener("change", update);
  if (!tasks.some((task) => task.lines.some((line) => line.time.length))) {
    document.querySelector("input[value=flops]").checked = true;
  }
  update();
})();
