// Token probabilities: a text as its tokens, each tinted by its probability, with the alternatives on hover or focus.

import { $, announce, h } from "./dom.js";

const percent = (logprob) => `${(100 * Math.exp(logprob)).toFixed(logprob > Math.log(0.1) ? 0 : 1)}%`;
const visible = (token) => token.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/ /g, "␣") || "(empty)";

/** Return one of five levels, 0 for the least probable. */
const level = (logprob) => Math.min(4, Math.floor(5 * Math.exp(logprob)));

function show(span, [token, logprob, top]) {
  const tip = $("tip");
  const rows = top.length ? top : [[token, logprob]];
  tip.replaceChildren(
    h("strong", {}, `${visible(token)} ${percent(logprob)}`),
    ...rows.map(([other, value]) => {
      const bar = h("span", { class: "bar" });
      bar.style.inlineSize = `${Math.max(1, 100 * Math.exp(value))}%`;
      return h("div", { class: other === token ? "chosen" : "" }, h("span", {}, visible(other)), h("span", {}, percent(value)), bar);
    }),
  );
  tip.hidden = false;
  const place = span.getBoundingClientRect();
  const above = place.bottom + tip.offsetHeight + 12 > innerHeight;
  tip.style.insetBlockStart = `${above ? place.top - tip.offsetHeight - 6 : place.bottom + 6}px`;
  tip.style.insetInlineStart = `${Math.max(8, Math.min(place.left, innerWidth - tip.offsetWidth - 8))}px`;
}

export const hideTip = () => ($("tip").hidden = true);

/** Fill an element with tokens. The arrow keys move from token to token. */
export function showTokens(element, tokens) {
  const spans = tokens.map((token) => h("span", { class: `token p${level(token[1])}` }, token[0]));
  element.replaceChildren(...spans);
  element.onmouseover = ({ target }) => {
    const index = spans.indexOf(target);
    if (index >= 0) show(target, tokens[index]);
  };
  element.onmouseleave = hideTip;
  let at = -1;
  element.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") hideTip();
    if (!step || !spans.length) return;
    event.preventDefault();
    spans[at]?.classList.remove("current");
    at = Math.max(0, Math.min(spans.length - 1, at + step));
    spans[at].classList.add("current");
    spans[at].scrollIntoView({ block: "nearest" });
    show(spans[at], tokens[at]);
    announce(`${visible(tokens[at][0])}, ${percent(tokens[at][1])}`);
  };
  element.onblur = hideTip;
}
