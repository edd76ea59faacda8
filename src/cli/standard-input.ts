import { CommandError, type Surroundings } from './cli.ts';

/** All of standard input. @throws CommandError when it is longer than that */
export async function readStandardInput(
  { stdin }: Pick<Surroundings, 'stdin'>,
  charactersMax: number,
): Promise<string> {
  let text = '';
  stdin.setEncoding('utf8');
  for await (const part of stdin) {
    text += String(part);
    if (text.length > charactersMax) throw new CommandError('standard input is too long');
  }
  return text;
}
