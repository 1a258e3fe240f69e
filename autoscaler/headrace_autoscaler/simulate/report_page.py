"""The page of a report, to be filled in by `string.Template` (a dollar sign of its own is doubled)."""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; \
style-src 'unsafe-inline'; img-src data: blob:">
<title>$title</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff; margin: 2rem auto;
       max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; }
dt { color: #555; } dd { margin: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child { text-align: left; }
.plot { height: 26rem; }
</style>
<script>$plotly</script>
</head>
<body>
<h1>$title</h1>
<dl>$facts</dl>
$notes
<h2>Figures</h2>
<div class="scroll">$table</div>
<h2>Cost against waiting</h2>
<div class="plot" id="pareto"></div>
<h2>Demand</h2>
<div class="plot" id="demand"></div>
<h2>Instances over time</h2>
<p><label>Policy: <select id="policy">$options</select></label> (the first seed's run)</p>
<div class="plot" id="instances"></div>
<div class="plot" id="tiers"></div>
<div class="plot" id="spent"></div>
<h2>Cost</h2>
<div class="plot" id="costs"></div>
<h2>Waits</h2>
<div class="plot" id="waits"></div>
<script>
const report = $data;
const margin = { l: 70, r: 20, t: 45, b: 50 };
const common = { margin, hovermode: "closest", legend: { traceorder: "normal" } };
// Nothing leaves the page: the library has a button that would send the data away.
const config = { displaylogo: false, responsive: true, showSendToCloud: false, plotlyServerURL: "" };
const show = plot => Plotly.react(plot.id, plot.data, { ...common, ...plot.layout }, config);
const policy = document.getElementById("policy");
const choose = () => Object.values(report.policies[policy.value] || {}).forEach(show);
report.plots.forEach(show);
policy.addEventListener("change", choose);
choose();
</script>
</body>
</html>
"""
