/** An error that a person can cause, said in one sentence, with the remedy as its hint. */
export class PageError extends Error {
  /**
   * @param {string} message What is wrong, what was found and what is allowed.
   * @param {string} [hint] The remedy.
   */
  constructor(message, hint = "") {
    super(message);
    this.hint = hint;
  }
}

const OUT_OF_MEMORY =
  /out of memory|\boom\b|bad_alloc|allocation failed|failed to allocate|memory access out of bounds/i;

/**
 * Turn whatever was thrown into two sentences for the page.
 *
 * @param {unknown} error
 * @returns {{message: string, hint: string}}
 */
export function explain(error) {
  if (error instanceof PageError) return { message: error.message, hint: error.hint };
  const said = error instanceof Error ? error.message : String(error);
  if (error instanceof RangeError || OUT_OF_MEMORY.test(said)) {
    return {
      message: `not enough memory for this bundle: ${said}`,
      hint: "a browser gives one page at most 4 GiB: close other tabs, ask for fewer new tokens, or take a smaller bundle",
    };
  }
  return { message: said, hint: "reload the page; if it happens again, the browser's console says more" };
}
