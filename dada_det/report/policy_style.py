"""The style sheet of the policy's page: one column on a phone, light and dark after the reader's own setting."""

STYLE = """
:root { --ground: #f6f7f9; --card: #fff; --text: #1b2330; --soft: #5a6577; --line: #dfe3ea; --heat: #184f95; --on: #fff;
  --empty: #f2f4f7; --band: #1b233014; --alarm: #b45309; --alarm-ground: #fff7e8; }
@media (prefers-color-scheme: dark) { :root { --ground: #11151c; --card: #191f29; --text: #e6eaf1; --soft: #9aa6b8;
  --line: #2e3746; --heat: #7db3ff; --on: #0b1320; --empty: #202836; --band: #ffffff14; --alarm: #f0b354;
  --alarm-ground: #2b2415; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text); font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans",
  sans-serif; -webkit-text-size-adjust: 100%; }
main { max-width: 1180px; margin: 0 auto; padding: 24px 16px 48px; display: grid; gap: 16px; }
header { padding: 0 4px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 0 0 6px; }
p { margin: 0 0 8px; }
.over { color: var(--soft); margin: 0; }
.note, small { color: var(--soft); font-size: 13px; }
.note { max-width: 120ch; }
code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .95em; }
a { color: var(--heat); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px; min-width: 0; }
.verdict { border-left: 5px solid var(--heat); }
.alarm { border-left-color: var(--alarm); background: var(--alarm-ground); }
.verdict p:last-child { margin: 0; }
.pair { display: grid; gap: 16px; grid-template-columns: minmax(0, 2fr) minmax(0, 3fr); }
table { border-collapse: collapse; }
data { font-variant-numeric: tabular-nums; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.bars { list-style: none; margin: 0; padding: 0; }
.bars li { display: grid; grid-template-columns: 96px 1fr 56px; gap: 8px; align-items: center; font-size: 13px;
  height: 29px; }
.bars data { text-align: right; }
.bar { position: relative; height: 14px; background: var(--empty); border-radius: 3px; }
.bar i { position: absolute; inset: 0 auto 0 0; background: var(--heat); border-radius: 3px; }
.bar b { position: absolute; top: -3px; bottom: -3px; width: 2px; margin-left: -1px; background: var(--alarm); }
.heat { width: 100%; table-layout: fixed; border-collapse: separate; border-spacing: 2px; font-size: 11px; }
.heat thead td { width: 92px; }
.heat th { font-weight: 400; padding: 0; }
.heat th[scope=row] { text-align: right; padding-right: 6px; font-size: 12px; }
.heat th[scope=col] { height: 92px; vertical-align: bottom; }
.heat th span { writing-mode: vertical-rl; transform: rotate(180deg); font-size: 12px; }
.heat tbody td { height: 27px; padding: 0; text-align: center; background: var(--empty); border-radius: 3px; }
.heat .diagonal { box-shadow: inset 0 0 0 1px var(--line); }
.heat .some, .heat .full { background: color-mix(in oklab, var(--heat) calc(8% + .92 * var(--part)), var(--card)); }
.heat .full { color: var(--on); }
.legend { display: flex; gap: 8px; align-items: center; justify-content: flex-end; margin: 8px 0 0; font-size: 12px;
  color: var(--soft); }
.legend i { width: 140px; height: 10px; border-radius: 3px; background: linear-gradient(90deg in oklab,
  color-mix(in oklab, var(--heat) 8%, var(--card)), var(--heat)); }
.policy { width: 100%; }
.policy th, .policy td, .plain th, .plain td { padding: 6px 10px; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
.policy .number, .plain .number { text-align: right; }
.policy th, .plain th { font-weight: 600; font-size: 13px; }
.policy tbody th { color: var(--soft); font-weight: 400; }
.policy td:nth-child(n + 3) { width: 43%; }
.operation { font-weight: 600; margin-right: 6px; white-space: nowrap; }
.operation data { white-space: nowrap; }
.policy th small { font-weight: 400; }
.none { color: var(--soft); }
#rest { margin: 10px 0 0; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(440px, 1fr)); gap: 14px 24px; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: 13px; margin-bottom: 4px; }
.grid figure div { display: grid; grid-template-columns: repeat(4, minmax(0, 112px)); gap: 6px; }
.grid figure:first-child { grid-column: 1 / -1; }
.grid img { width: 100%; height: auto; border-radius: 4px; display: block; }
.plain { margin: 12px 0; }
.strips { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 20px; margin: 16px 0; }
.strips figcaption { color: var(--soft); }
.strips b { color: var(--text); }
svg { width: 100%; height: auto; max-width: 440px; display: block; }
svg text { font-size: 11px; fill: var(--soft); }
svg circle { fill: var(--heat); fill-opacity: .6; }
svg .band { fill: var(--band); }
svg .tick { stroke: var(--line); }
svg .zero { stroke: var(--soft); }
summary { cursor: pointer; font-size: 14px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 16px; margin: 0; font-size: 14px; }
dt { color: var(--soft); max-width: 30vw; overflow-wrap: anywhere; }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 860px) { .pair { grid-template-columns: minmax(0, 1fr); } }
@media (max-width: 560px) {
  main { padding: 14px 8px 32px; gap: 10px; }
  section { padding: 14px 12px; border-radius: 8px; }
  h1 { font-size: 23px; }
  .grid { grid-template-columns: minmax(0, 1fr); }
  .policy th, .policy td, .plain th, .plain td { padding: 6px 4px; }
  .policy small { display: block; }
  .policy .operation { white-space: normal; font-size: 14px; }
  .bars li { height: 25px; }
  .heat { border-spacing: 1px; }
  .heat thead td { width: 78px; }
  .heat th[scope=row], .heat th span { font-size: 11px; }
  .heat tbody td { height: 18px; font-size: 0; }
}
"""
