/** The command line. Each subcommand is a file of this folder, imported only when it is asked for. */
import { Command, CommanderError, Option } from 'commander';
import type { Question } from './explain.ts';
import { ConfigError, readConfig, SETTINGS, type Config, type SettingKey } from '../config.ts';

/** What commands need of the process; tests hand in their own. */
export type Surroundings = Pick<
  NodeJS.Process,
  'env' | 'platform' | 'stdout' | 'stderr' | 'stdin' | 'on' | 'pid' | 'exit'
>;

/** A failure the user can act on: printed without a stack, exit code 1 unless the command says otherwise. */
export class CommandError extends Error {
  override readonly name = 'CommandError';
  readonly exitCode: number;
  constructor(message: string, exitCode = 1) {
    super(message);
    this.exitCode = exitCode;
  }
}

const SERVE_KEYS = Object.keys(SETTINGS) as SettingKey[];
const CLIENT_KEYS: readonly SettingKey[] = ['data'];
/** what the names of certificates follow from */
const NAME_KEYS: readonly SettingKey[] = ['data', 'host', 'account', 'region', 'regions', 'registry-host'];

export function createMain(surroundings: Surroundings): { run(argv: readonly string[]): Promise<number> } {
  return {
    async run(argv) {
      try {
        await createProgram(surroundings).parseAsync(argv);
        return 0;
      } catch (error) {
        // WHY: the exit codes of these two are answers; 1 would be "denied" or "warnings".
        const wrongUsage = argv[2] === 'explain' || argv[2] === 'doctor' ? 2 : 1;
        if (error instanceof CommanderError) {
          const isUsage = error.code.startsWith('commander.') && error.exitCode !== 0;
          return isUsage ? wrongUsage : error.exitCode;
        }
        if (error instanceof ConfigError || error instanceof CommandError) {
          surroundings.stderr.write(`berth: ${error.message}\n`);
          return error instanceof CommandError ? error.exitCode : wrongUsage;
        }
        throw error;
      }
    },
  };
}

function createProgram(surroundings: Surroundings): Command {
  const program = new Command('berth')
    .description('Amazon ECR that you run yourself')
    .exitOverride()
    .showHelpAfterError();
  withSettings(program.command('serve').description('run the server'), SERVE_KEYS).action(
    async (flags: Flags) => {
      const { serve } = await import('./serve.ts');
      await serve(configOf(flags, surroundings), surroundings);
    },
  );
  withSettings(
    program.command('env').description('print the exports that point AWS tools at this server'),
    CLIENT_KEYS,
  )
    .option('--json', 'print them as one JSON object')
    .action(async (flags: Flags) => {
      const { env } = await import('./env.ts');
      await env(configOf(flags, surroundings), surroundings, flags['json'] === true);
    });
  withSettings(program.command('login').description('log docker or podman in to this server'), CLIENT_KEYS)
    .addOption(new Option('--client <program>', 'the program to log in').choices(['docker', 'podman']))
    .action(async (flags: Flags) => {
      const { login } = await import('./login.ts');
      await login(
        configOf(flags, surroundings),
        surroundings,
        flags['client'] as 'docker' | 'podman' | undefined,
      );
    });
  withSettings(program.command('events').description('print, follow and replay events'), CLIENT_KEYS)
    .option('--follow', 'go on with what happens')
    .option('--from <id>', 'begin after this event')
    .addOption(new Option('--dead', 'list what webhooks did not accept').conflicts(['follow', 'from']))
    .addOption(
      new Option('--replay <id>', 'deliver a dead letter again, or "all"').conflicts([
        'follow',
        'from',
        'dead',
      ]),
    )
    .action(async (flags: Flags) => {
      const { events } = await import('./events.ts');
      await events(configOf(flags, surroundings), surroundings, {
        follow: flags['follow'] === true,
        from: flags['from'] as string | undefined,
        dead: flags['dead'] === true,
        replay: flags['replay'] as string | undefined,
      });
    });
  addUpkeep(program, surroundings);
  addLifecycle(program, surroundings);
  addTls(program, surroundings);
  addMachines(program, surroundings);
  addClusters(program, surroundings);
  addExplain(program, surroundings);
  addDoctor(program, surroundings);
  const account = program.command('account').description('make and list accounts');
  withSettings(account.command('create').description('make an account with an administrator'), CLIENT_KEYS)
    .option('--id <id>', 'its twelve digits; random unless told')
    .option('--alias <alias>', 'a name for it, unique on this server')
    .option('--json', 'print it as JSON')
    .action(async (flags: Flags) => {
      const { createAccountCommand } = await import('./account.ts');
      const { id, alias, json } = flags;
      await createAccountCommand(configOf(flags, surroundings), surroundings, {
        id: id === undefined ? undefined : String(id),
        alias: alias === undefined ? undefined : String(alias),
        json: json === true,
      });
    });
  withSettings(account.command('list').description('list the accounts'), CLIENT_KEYS)
    .option('--json', 'print them as JSON')
    .action(async (flags: Flags) => {
      const { listAccountsCommand } = await import('./account.ts');
      await listAccountsCommand(configOf(flags, surroundings), surroundings, flags['json'] === true);
    });
  addKeys(program, surroundings);
  program
    .command('version')
    .description('print the version')
    .option('--json', 'print it as JSON, with the versions of the runtime')
    .action(async (flags: Flags) => {
      const { version } = await import('./version.ts');
      version(surroundings, flags['json'] === true);
    });
  return program;
}

function addKeys(program: Command, surroundings: Surroundings): void {
  const key = program.command('key').description('keys of repositories with KMS encryption');
  const settings: readonly SettingKey[] = ['data', 'account', 'region'];
  withSettings(key.command('create').description('make a key and print its ARN'), settings)
    .option('--alias <alias>', 'alias/ and a name that leads to the key as well')
    .action(async (flags: Flags) => {
      const { createKeyCommand } = await import('./key.ts');
      const alias = flags['alias'] === undefined ? undefined : String(flags['alias']);
      await createKeyCommand(configOf(flags, surroundings), surroundings, alias);
    });
  withSettings(key.command('list').description('print the ARNs of all keys'), CLIENT_KEYS).action(
    async (flags: Flags) => {
      const { listKeysCommand } = await import('./key.ts');
      await listKeysCommand(configOf(flags, surroundings), surroundings);
    },
  );
}

/** Commands about lifecycle policies. */
function addLifecycle(program: Command, surroundings: Surroundings): void {
  const lifecycle = program.command('lifecycle').description('see what lifecycle policies do');
  withSettings(
    lifecycle.command('explain').description('print what a policy does to each image now, and why'),
    CLIENT_KEYS,
  )
    .argument('<repository>', 'its name')
    .option('--policy <file>', "a policy to try instead of the repository's")
    .option('--image <reference...>', 'only these tags or digests')
    .option('--registry-id <account>', "the registry, when it is another account's")
    .option('--json', 'print one JSON object for each image')
    .action(async (repository: string, flags: Flags & { image?: string[] }) => {
      const { explainLifecycle } = await import('./lifecycle.ts');
      await explainLifecycle(configOf(flags, surroundings), surroundings, repository, {
        policy: flags['policy'] as string | undefined,
        images: flags.image ?? [],
        registryId: flags['registryId'] as string | undefined,
        json: flags['json'] === true,
      });
    });
}

/** Commands about what is kept: verification, backup and restore. */
function addUpkeep(program: Command, surroundings: Surroundings): void {
  withSettings(program.command('fsck').description('verify everything that is kept'), CLIENT_KEYS)
    .option('--repair', 'do what is safe about it; the server must not be running (on SQLite)')
    .option('--json', 'print one JSON object')
    .action(async (flags: Flags) => {
      const { fsck } = await import('./fsck.ts');
      const options = { repair: flags['repair'] === true, json: flags['json'] === true };
      await fsck(configOf(flags, surroundings), surroundings, options);
    });
  withSettings(program.command('backup').description('back up, also while the server runs'), CLIENT_KEYS)
    .argument('<directory>', 'where backups are kept; content that is there already is not copied again')
    .option('--keep <count>', 'remove older snapshots but this many')
    .option(
      '--without-keys',
      'leave out the keys and the first credentials, which must then be kept elsewhere',
    )
    .option('--json', 'print one JSON object')
    .action(async (directory: string, flags: Flags) => {
      const { backup } = await import('./backup.ts');
      await backup(configOf(flags, surroundings), surroundings, {
        directory,
        keep: flags['keep'] as string | undefined,
        withoutKeys: flags['withoutKeys'] === true,
        json: flags['json'] === true,
      });
    });
  withSettings(
    program.command('restore').description('restore a backup into an empty data directory'),
    CLIENT_KEYS,
  )
    .argument('<directory>', 'where the backups are')
    .option('--snapshot <id>', 'which one; the newest unless told')
    .option('--verify', 'only verify the backup, write nothing')
    .option('--json', 'print one JSON object')
    .action(async (directory: string, flags: Flags) => {
      const { restore } = await import('./restore.ts');
      await restore(configOf(flags, surroundings), surroundings, {
        directory,
        snapshot: flags['snapshot'] as string | undefined,
        verify: flags['verify'] === true,
        json: flags['json'] === true,
      });
    });
}

function addTls(program: Command, surroundings: Surroundings): void {
  const tls = program.command('tls').description('a private CA and a certificate for this server');
  const several = (value: string, before: readonly string[]): string[] => [...before, value];
  withSettings(tls.command('init').description('make them; again: renew the certificate'), NAME_KEYS)
    .addOption(new Option('--name <name>', 'another name or address').argParser(several).default([]))
    .addOption(
      new Option('--permit <name>', 'a name (and those below it) that the new CA may certify later')
        .argParser(several)
        .default([]),
    )
    .option('--aws-names', "AWS's host names of ECR, STS and IAM in the regions of the settings")
    .option('--days <count>', 'how long the certificate is valid', '397')
    .option('--new-ca', 'make a new CA although there is one: clients have to trust it anew')
    .option('--json', 'print one JSON object')
    .action(async (flags: Flags & { readonly name: string[]; readonly permit: string[] }) => {
      const { tlsInit } = await import('./tls.ts');
      const { name: names, permit, days, ...rest } = flags;
      // the address is asked for its name; whether it may be served in clear is another command's matter
      await tlsInit(configOf({ ...rest, insecureHttp: true }, surroundings), surroundings, {
        names,
        permit,
        awsNames: flags['awsNames'] === true,
        newCa: flags['newCa'] === true,
        days: String(days),
        json: flags['json'] === true,
      });
    });
  withSettings(tls.command('show').description('print names and expiry'), CLIENT_KEYS)
    .option('--json', 'print one JSON object')
    .action(async (flags: Flags) => {
      const { tlsShow } = await import('./tls.ts');
      await tlsShow(configOf(flags, surroundings), surroundings, flags['json'] === true);
    });
}

/** Roles for machines: what EC2 and ECS do inside AWS. */
function addMachines(program: Command, surroundings: Surroundings): void {
  const several = (value: string, before: readonly string[]): string[] => [...before, value];
  withSettings(
    program.command('imds').description("serve EC2's instance metadata with a role's credentials"),
    CLIENT_KEYS,
  )
    .requiredOption('--role <role>', 'name or ARN of a role that trusts ec2.amazonaws.com')
    .addOption(
      new Option('--listen <address>', 'an IP address with port; may be repeated')
        .argParser(several)
        .default([], '127.0.0.1:1338'),
    )
    .option('--allow-remote', 'listen also where other machines can ask')
    .option('--instance-id <id>', 'i-...; derived from the machine unless told')
    .option('--no-v1', 'answer only requests that carry a token')
    .option('--hop-limit <count>', '1: only addresses of this machine get a token', '1')
    .option('--duration <seconds>', "how long credentials are valid; the role's default unless told")
    .option('--json', 'print one JSON object')
    .action(async (flags: Flags & { readonly listen: string[] }) => {
      const { imds } = await import('./imds.ts');
      const { listen, ...rest } = flags;
      await imds(configOf(rest, surroundings), surroundings, {
        role: String(flags['role']),
        listen: listen.length === 0 ? ['127.0.0.1:1338'] : listen,
        allowRemote: flags['allowRemote'] === true,
        instanceId: flags['instanceId'] as string | undefined,
        v1: flags['v1'] !== false,
        hopLimit: String(flags['hopLimit']),
        duration: flags['duration'] as string | undefined,
        json: flags['json'] === true,
      });
    });
  withSettings(
    program.command('run-task').description('run an ECS task definition on the local Docker engine'),
    CLIENT_KEYS,
  )
    .argument('<file>', 'the task definition, as register-task-definition takes it; "-" is standard input')
    .option('--cluster <name>', 'the cluster in ARNs', 'default')
    .option('--network <mode>', "bridge, host, none or a Docker network, instead of the definition's")
    .option('--duration <seconds>', "how long credentials are valid; the role's default unless told")
    .option('--follow', "print the containers' output (default)")
    .option('--no-follow', 'print only what becomes of the containers')
    .option('--json', 'print lines of JSON')
    .action(async (file: string, flags: Flags) => {
      const { runTask } = await import('./run-task.ts');
      const { network, duration, cluster, follow, json, ...rest } = flags;
      await runTask(configOf(rest, surroundings), surroundings, {
        file,
        cluster: String(cluster),
        network: network as string | undefined,
        duration: duration as string | undefined,
        follow: follow !== false,
        json: json === true,
      });
    });
}

/** Kubernetes, and Docker's credential helper. */
function addClusters(program: Command, surroundings: Surroundings): void {
  const several = (value: string, before: readonly string[]): string[] => [...before, value];
  withSettings(
    program.command('credential-provider').description("answer the kubelet's credential provider protocol"),
    CLIENT_KEYS,
  )
    .addOption(
      new Option('--registry <pattern>', "a registry of Berth's, as in matchImages; may be repeated")
        .argParser(several)
        .default([], 'none'),
    )
    .action(async (flags: Flags & { readonly registry: string[] }) => {
      const { credentialProvider } = await import('./credential-provider.ts');
      const { registry, ...rest } = flags;
      await credentialProvider(configOf(rest, surroundings), surroundings, registry);
    });
  withSettings(
    program.command('pod-identity-agent').description('give pods the roles of their service accounts'),
    CLIENT_KEYS,
  )
    .requiredOption('--cluster <name>', 'the eks-cluster-name tag of the OpenID Connect provider')
    .requiredOption('--associations <file>', 'JSON: which service account has which role')
    .option('--listen <address>', 'an IP address with port', '169.254.170.23:80')
    .option('--json', 'print one JSON object')
    .action(async (flags: Flags) => {
      const { podIdentityAgent } = await import('./pod-identity-agent.ts');
      await podIdentityAgent(configOf(flags, surroundings), surroundings, {
        cluster: String(flags['cluster']),
        associations: String(flags['associations']),
        listen: String(flags['listen']),
        json: flags['json'] === true,
      });
    });
  const kubernetes = program.command('kubernetes').description('make clusters pull from this registry');
  withSettings(kubernetes.command('config').description('print or write configuration'), CLIENT_KEYS)
    .addOption(
      new Option('--for <runtime>', 'what it is for')
        .choices(['kind', 'k3s', 'containerd', 'kubelet', 'eks'])
        .makeOptionMandatory(),
    )
    .option('--registry <host>', 'host of the registry, with port; the running server unless told')
    .option('--endpoint <url>', 'address of the API; https:// and the registry unless told')
    .option('--ca <file>', 'certificates that sign the registry; its own authority unless told')
    .option('--pods', "pods pull with their service accounts' roles, not with the node's")
    .option('--out <directory>', 'write files instead of printing them')
    .action(async (flags: Flags) => {
      const { kubernetesConfig } = await import('./kubernetes.ts');
      await kubernetesConfig(configOf(flags, surroundings), surroundings, {
        for: flags['for'] as 'kind' | 'k3s' | 'containerd' | 'kubelet' | 'eks',
        registry: flags['registry'] as string | undefined,
        endpoint: flags['endpoint'] as string | undefined,
        ca: flags['ca'] as string | undefined,
        out: flags['out'] as string | undefined,
        pods: flags['pods'] === true,
      });
    });
  withSettings(program.command('docker-credential', { hidden: true }), CLIENT_KEYS)
    .argument('<verb>', 'get, store, erase or list')
    .action(async (verb: string, flags: Flags) => {
      const { dockerCredential } = await import('./docker-credential.ts');
      await dockerCredential(configOf(flags, surroundings), surroundings, verb);
    });
}

/** Why something was denied, and what is wrong with this machine. */
function addExplain(program: Command, surroundings: Surroundings): void {
  const parent = program
    .command('explain')
    .description('why a request was denied, who may do what. Exit code: 0 allowed, 1 denied, 2 cannot tell');
  const asking = async (flags: Flags, question: Question): Promise<void> => {
    const { explain } = await import('./explain.ts');
    exitWith(
      await explain(configOf(flags, surroundings), surroundings, { question, json: flags['json'] === true }),
    );
  };
  const add = (command: Command, description: string): Command =>
    withSettings(command.description(description), CLIENT_KEYS).option('--json', 'print one JSON object');
  add(parent.command('deny'), 'a denial: what was asked, which policy decided, what would allow it')
    .argument('[request-id]', 'the x-amzn-RequestId of the answer')
    .addOption(new Option('--last', 'the newest denial of your account'))
    .option('--principal <arn>', 'with --last: of this user, role or session')
    .action(async (requestId: string | undefined, flags: Flags) => {
      if ((requestId === undefined) !== (flags['last'] === true)) {
        throw new CommandError('name a request id, or say --last', 2);
      }
      const principal = flags['principal'] as string | undefined;
      await asking(flags, { kind: 'deny', requestId, principal });
    });
  add(parent.command('access'), 'whether somebody may do something, and by which policy')
    .argument('<principal>', 'ARN of a user, role, session or root')
    .argument('<action>', 'for example ecr:BatchGetImage')
    .argument('<resource>', 'ARN, or "*"')
    .option('--context <key=value...>', 'condition keys of the imagined request')
    .action(async (principal: string, action: string, resource: string, flags: Flags) => {
      const context = (flags['context'] ?? []) as readonly string[];
      await asking(flags, { kind: 'access', principal, action, resource, context });
    });
  add(parent.command('image'), 'where an image name leads, and who may pull it')
    .argument('<reference>', 'host/repository[:tag][@digest]')
    .action((reference: string, flags: Flags) => asking(flags, { kind: 'image', reference }));
  add(parent.command('token'), 'whose a registry token is, until when, and what it may do')
    .argument('<token>', 'the password, its base64 form, or - to read it from standard input')
    .action((token: string, flags: Flags) => asking(flags, { kind: 'token', token }));
}

/** What is wrong with this machine. */
function addDoctor(program: Command, surroundings: Surroundings): void {
  withSettings(
    program
      .command('doctor')
      .description(
        'what keeps this machine from pulling and pushing. Exit code: 0 nothing, 1 warnings, 2 errors',
      ),
    CLIENT_KEYS,
  )
    .argument('[reference]', 'a registry or an image; the server of this machine unless told')
    .option('--json', 'print one JSON object')
    .action(async (reference: string | undefined, flags: Flags) => {
      const { doctor } = await import('./doctor.ts');
      const options = { reference, json: flags['json'] === true };
      exitWith(await doctor(configOf(flags, surroundings), surroundings, options));
    });
}

/** Ends the command with this exit code, without another word. */
function exitWith(code: number): void {
  if (code !== 0) throw new CommanderError(code, 'berth.finding', '');
}

type Flags = Record<string, string | boolean | undefined>;

function withSettings(command: Command, keys: readonly SettingKey[]): Command {
  for (const key of keys) {
    const setting = SETTINGS[key];
    if ('secret' in setting) continue;
    const value = 'value' in setting ? ` <${setting.value}>` : '';
    const fallback =
      setting.fallback === '' || setting.fallback === 'false' ? '' : ` (default: ${setting.fallback})`;
    command.option(`--${key}${value}`, setting.help + fallback);
  }
  return command.option('--config <file>', 'YAML file of settings');
}

function configOf(flags: Flags, { env, platform }: Surroundings): Config {
  const texts: Record<string, string | undefined> = {};
  for (const key of SERVE_KEYS) {
    const value = flags[key.replace(/-([a-z])/g, (_, letter: string) => letter.toUpperCase())];
    if (value !== undefined) texts[key] = String(value);
  }
  return readConfig({ flags: texts, env, file: flags['config'] as string | undefined, platform });
}
