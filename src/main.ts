/** The executable: picks a subcommand and imports it lazily. The only place with signals and exit codes. */
import { createMain } from './cli/cli.ts';

process.exitCode = await createMain(process).run(process.argv);
