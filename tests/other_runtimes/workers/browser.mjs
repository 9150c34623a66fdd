// Drive Chromium: one scenario of those below, as the question says; see `asked`.

import { text } from "node:stream/consumers";
import { chromium } from "playwright-core";

const WAIT = { timeout: 120_000 };
const question = JSON.parse(await text(process.stdin));
const browser = await chromium.launch({
  executablePath: question.chromium,
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});

async function open({ width = 1280, height = 800, scheme = "light", without = null } = {}) {
  const context = await browser.newContext({ viewport: { width, height }, colorScheme: scheme });
  const page = await context.newPage();
  const seen = { origins: new Set(), errors: [] };
  page.on("request", (request) => seen.origins.add(new URL(request.url()).origin));
  page.on("pageerror", (error) => seen.errors.push(String(error)));
  if (without) await page.addInitScript((name) => delete globalThis[name], without);
  await page.goto(question.url);
  return { page, seen };
}

const ready = (page) => page.waitForFunction(() => !document.getElementById("generate").disabled, null, WAIT);
const idle = (page) => page.waitForFunction(() => document.getElementById("stop").hidden, null, WAIT);

async function generate(page, { prompt, settings = {} }) {
  await page.fill("#prompt", prompt);
  if (!(await page.isVisible("#seed"))) await page.click("summary");
  for (const [id, value] of Object.entries(settings)) await page.fill(`#${id}`, String(value));
  await page.click("summary");
  // How many different texts a person saw on the way.
  await page.evaluate(() => {
    window.states = 0;
    window.observer = new MutationObserver(() => window.states++);
    window.observer.observe(document.getElementById("output-text"), {
      childList: true,
      characterData: true,
      subtree: true,
    });
  });
  await page.click("#generate");
}

async function result(page) {
  await idle(page);
  return {
    prompt: await page.textContent("#output-prompt"),
    text: await page.textContent("#output-text"),
    figures: await page.textContent("#figures"),
    states: await page.evaluate(() => window.states),
    alert: (await page.isVisible("#alert"))
      ? [await page.textContent("#alert-message"), await page.textContent("#alert-hint")]
      : null,
  };
}

/** How many pixels the page is wider than the window, and buttons too small for a finger. */
const layout = (page) =>
  page.evaluate(() => ({
    overflow: document.documentElement.scrollWidth - innerWidth,
    smallest: Math.min(
      ...[...document.querySelectorAll("button")]
        .filter((each) => each.offsetHeight)
        .map((each) => each.offsetHeight),
    ),
  }));

const scenarios = {
  async transformers() {
    const { page, seen } = await open();
    await page.waitForFunction(() => window.generate, null, WAIT);
    return {
      greedy: await page.evaluate((asked) => window.generate(asked), question),
      origins: [...seen.origins],
    };
  },

  async page() {
    const { page, seen } = await open(question);
    await ready(page);
    const answers = [];
    for (const request of question.requests) {
      await generate(page, request);
      answers.push(await result(page));
    }
    if (question.screenshot) await page.screenshot({ path: question.screenshot });
    const isolated = await page.evaluate(() => globalThis.crossOriginIsolated);
    const facts = await page.textContent("#facts");
    return {
      answers,
      origins: [...seen.origins],
      errors: seen.errors,
      isolated,
      facts,
      name: await page.textContent("#name"),
      ...(await layout(page)),
    };
  },

  async stop() {
    const { page } = await open(question);
    await ready(page);
    await generate(page, question.requests[0]);
    await page.waitForFunction(
      () => document.getElementById("output-text").textContent.length > 10,
      null,
      WAIT,
    );
    await page.click("#stop");
    const stopped = await result(page);
    await generate(page, question.requests[0]);
    await idle(page);
    return { stopped, again: await result(page) };
  },

  async check() {
    const { page } = await open(question);
    await ready(page);
    await page.click("#check");
    return result(page);
  },

  /** A verification's report: its plots, their smallest letters in pixels, and words that are cut off. */
  async report() {
    const { page, seen } = await open(question);
    const drawn = await page.evaluate(() => {
      const words = [...document.querySelectorAll("svg text")].map((word) => {
        const plot = word.ownerSVGElement;
        const scale = plot.getBoundingClientRect().width / plot.viewBox.baseVal.width;
        const [box, frame] = [word.getBoundingClientRect(), plot.getBoundingClientRect()];
        const inside = box.left >= frame.left - 1 && box.right <= frame.right + 1;
        return { pixels: scale * parseFloat(getComputedStyle(word).fontSize), inside, text: word.textContent };
      });
      return {
        plots: document.querySelectorAll("svg").length,
        smallest: Math.min(...words.map((word) => word.pixels)),
        cut: words.filter((word) => !word.inside).map((word) => word.text),
        headings: [...document.querySelectorAll("h2")].map((heading) => heading.textContent),
      };
    });
    if (question.screenshot) await page.screenshot({ path: question.screenshot, fullPage: true });
    const { overflow } = await layout(page);
    return { ...drawn, overflow, errors: seen.errors, origins: [...seen.origins] };
  },

  /** What the page says when it cannot open the bundle. */
  async failure() {
    const { page, seen } = await open(question);
    await page.waitForSelector("#alert:not([hidden])", WAIT);
    return {
      message: await page.textContent("#alert-message"),
      hint: await page.textContent("#alert-hint"),
      disabled: await page.isDisabled("#generate"),
      loading: await page.isVisible("#loading"),
      errors: seen.errors,
    };
  },
};

try {
  console.log(JSON.stringify(await scenarios[question.scenario]()));
} finally {
  await browser.close();
}
