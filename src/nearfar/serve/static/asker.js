// One question in flight, the latest one wins. Knows neither images nor the page.

const PACE = 90; // ms between the starts of two questions while a pen is drawing
const AGAIN = 2000; // ms until a question that found no server is asked once more

/** Puts questions to `send(question, signal)` and hands on what comes back, unless it is no longer wanted. */
export class Asker {
  #send;
  #heard;
  #failed;
  #flight = null; // {question, abort}
  #next = null; // the latest question that waits
  #timer = 0;
  #started = -Infinity;
  #last = null; // {question, answer}

  /**
   * @param {(question: any, signal: AbortSignal) => Promise<any>} send
   * @param {(answer: any, question: any) => void} heard
   * @param {(error: Error, question: any) => boolean} failed says whether to ask again later
   */
  constructor(send, heard, failed) {
    this.#send = send;
    this.#heard = heard;
    this.#failed = failed;
  }

  /**
   * Ask; `atOnce` does not wait for the question before, but drops it, unless it is about the same: then its answer will do.
   * @param {{about: any}} question questions about the same have one answer
   */
  ask(question, atOnce = false) {
    if (atOnce && this.#flight?.question.about === question.about) {
      [this.#flight.question, this.#next] = [question, null];
      return;
    }
    if (atOnce && this.#last?.question.about === question.about && !this.#next) {
      this.#drop();
      this.#heard(this.#last.answer, question);
      return;
    }
    this.#next = question;
    if (atOnce) {
      this.#drop();
      this.#start();
    } else if (!this.#flight) {
      this.#wait(this.#started + PACE - performance.now());
    }
  }

  /** Nothing is wanted any longer. */
  stop() {
    this.#next = this.#last = null;
    this.#drop();
  }

  #drop() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    this.#flight?.abort.abort();
    this.#flight = null;
  }

  #wait(ms) {
    if (!this.#timer) this.#timer = setTimeout(() => this.#start(), Math.max(0, ms));
  }

  async #start() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    if (this.#next === null) return;
    const flight = { question: this.#next, abort: new AbortController() };
    [this.#flight, this.#next, this.#started] = [flight, null, performance.now()];
    let pause = this.#started + PACE;
    try {
      const answer = await this.#send(flight.question, flight.abort.signal);
      if (this.#flight !== flight) return;
      this.#last = { question: flight.question, answer };
      this.#heard(answer, flight.question);
    } catch (error) {
      if (this.#flight !== flight) return;
      if (this.#failed(error, flight.question)) {
        this.#next ??= flight.question;
        pause = performance.now() + AGAIN;
      }
    }
    this.#flight = null;
    if (this.#next !== null) this.#wait(pause - performance.now());
  }
}
