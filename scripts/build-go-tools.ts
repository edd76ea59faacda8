/** Builds the Go programs that the tests drive, one after another, into the cache they look in. */
import { goTool, TESTED_GO_TOOLS } from '../test/clients/go-tools.ts';

for (const name of TESTED_GO_TOOLS) await goTool(name);
