/** Calls `action` at once, and when asked again too soon once more after the pause: however often it is asked. */
export function throttle(pauseMs: number, action: () => void): () => void {
  let asked = false;
  let timer: NodeJS.Timeout | undefined;
  const act = (): void => {
    asked = false;
    timer = setTimeout(() => {
      timer = undefined;
      if (asked) act();
    }, pauseMs);
    timer.unref();
    action();
  };
  return () => {
    if (timer === undefined) act();
    else asked = true;
  };
}
