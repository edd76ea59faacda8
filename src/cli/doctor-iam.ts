/** Whose credentials these are, what they may do at the registry, and whether names, regions and accounts fit together. */
import type * as berth from '../model/berth-types.ts';
import { CommandError } from './cli.ts';
import { CallError, connect, type Client, type Target } from './client.ts';
import type { CredentialSource } from './credentials.ts';
import { failure, ok, warning, type Finding, type Subject } from './doctor-finding.ts';
import { whyOf } from './explain-text.ts';
import { readRegistryHost } from './registry-login.ts';

interface Refusal {
  readonly code: string;
  readonly message: string;
  readonly requestId: string | undefined;
}

export interface ActionFacts {
  readonly action: string;
  readonly allowed: boolean;
  readonly why: string;
  readonly statement?: string | undefined;
}

export interface IamFacts {
  /** why there are no credentials */
  readonly noCredentials?: string;
  readonly from?: string;
  readonly accessKeyId?: string;
  readonly endpoint: string;
  readonly region: string;
  readonly identity?: { readonly account: string; readonly arn: string };
  readonly identityRefused?: Refusal;
  /** no answer at all */
  readonly unreachable?: string;
  /** host that GetAuthorizationToken says its token is for */
  readonly tokenHost?: string;
  readonly loginRefused?: Refusal;
  /** pull and push of the repository; undefined when that cannot be told, or no repository is named */
  readonly pull?: readonly ActionFacts[];
  readonly push?: readonly ActionFacts[];
  /** the caller may not ask who may do what: the actions were tried */
  readonly tried?: true;
  readonly actionsRefused?: Refusal;
  /** regions in which the repository was looked for */
  readonly repositories: readonly {
    readonly region: string;
    readonly state: 'there' | 'absent' | 'not told';
  }[];
}

export const PULL_ACTIONS = ['ecr:BatchGetImage', 'ecr:GetDownloadUrlForLayer'];
export const PUSH_ACTIONS = [
  'ecr:BatchCheckLayerAvailability',
  'ecr:InitiateLayerUpload',
  'ecr:UploadLayerPart',
  'ecr:CompleteLayerUpload',
  'ecr:PutImage',
];

export async function probeIam(
  subject: Subject,
  target: Target,
  source: CredentialSource | CommandError,
): Promise<{ readonly facts: IamFacts; readonly client: Client | undefined }> {
  const { endpoint, region } = target;
  const base = { endpoint, region, repositories: [] };
  if (source instanceof CommandError) {
    return { facts: { ...base, noCredentials: source.message }, client: undefined };
  }
  let client: Client;
  let identity: { readonly account: string; readonly arn: string };
  try {
    client = await connect(target, source);
  } catch (error) {
    return { facts: { ...base, from: source.from, noCredentials: messageOf(error) }, client: undefined };
  }
  const known = { ...base, from: source.from, accessKeyId: client.credentials.accessKeyId };
  try {
    identity = await client.whoAmI();
  } catch (error) {
    const told =
      error instanceof CallError ? { identityRefused: refusalOf(error) } : { unreachable: messageOf(error) };
    return { facts: { ...known, ...told }, client: undefined };
  }
  const { account = identity.account, region: named = region } = readRegistryHost(subject.host) ?? {};
  const facts: IamFacts = {
    ...known,
    identity,
    ...(await probeLogin(client)),
    ...(subject.repository !== undefined &&
      (await probeActions(client, await connect({ ...target, region: named }, source), {
        caller: identity,
        region: named,
        registryId: account,
        repositoryName: subject.repository,
      }))),
    repositories:
      subject.repository === undefined
        ? []
        : await findRepositories({ target, source, account, name: subject.repository }, [
            ...new Set([named, region, 'us-east-1']),
          ]),
  };
  return { facts, client };
}

function messageOf(error: unknown): string {
  if (error instanceof CommandError) return error.message;
  throw error;
}

function refusalOf(error: CallError): Refusal {
  const { code, requestId } = error;
  return { code, message: error.message.slice(code.length + 2), requestId };
}

async function probeLogin(client: Client): Promise<Pick<IamFacts, 'tokenHost' | 'loginRefused'>> {
  try {
    const { authorizationData } = await client.call<{
      readonly authorizationData: readonly { readonly proxyEndpoint: string }[];
    }>('ecr', 'GetAuthorizationToken', {});
    return { tokenHost: (authorizationData[0]?.proxyEndpoint ?? '').replace(/^https?:\/\//, '') };
  } catch (error) {
    if (!(error instanceof CallError)) throw error;
    return { loginRefused: refusalOf(error) };
  }
}

interface Place {
  readonly caller: { readonly account: string; readonly arn: string };
  readonly region: string;
  readonly registryId: string;
  readonly repositoryName: string;
}

const arnOf = ({ region, registryId, repositoryName }: Place): string =>
  `arn:aws:ecr:${region}:${registryId}:repository/${repositoryName}`;

/** Asks what the caller may do, or where that is not answered, tries it. */
async function probeActions(
  client: Client,
  regional: Client,
  place: Place,
): Promise<Pick<IamFacts, 'pull' | 'push' | 'tried' | 'actionsRefused'>> {
  const both = async (
    facts: (action: string) => Promise<ActionFacts>,
    push: readonly string[],
  ): Promise<Pick<IamFacts, 'pull' | 'push'>> => {
    const found = new Map<string, ActionFacts>();
    for (const action of [...PULL_ACTIONS, ...push]) found.set(action, await facts(action));
    const of = (actions: readonly string[]) => actions.flatMap((action) => found.get(action) ?? []);
    return { pull: of(PULL_ACTIONS), push: of(push) };
  };
  try {
    try {
      return await both((action) => explainAction(client, place, action), PUSH_ACTIONS);
    } catch (error) {
      // Who may not ask, and who is nobody that can be asked about (a federated user).
      if (!(error instanceof CallError) || error.status >= 500) throw error;
      const harmless = PUSH_ACTIONS.filter((action) => ATTEMPTS.has(action));
      return { ...(await both((action) => tryAction(regional, place, action), harmless)), tried: true };
    }
  } catch (error) {
    if (!(error instanceof CallError)) throw error;
    return { actionsRefused: refusalOf(error) };
  }
}

async function explainAction(client: Client, place: Place, action: string): Promise<ActionFacts> {
  const { explanation } = await client.call<berth.ExplainAccessResponse>('berth', 'ExplainAccess', {
    principalArn: place.caller.arn,
    action,
    resourceArn: arnOf(place),
  });
  return {
    action,
    allowed: explanation.allowed,
    why: whyOf(explanation),
    statement: explanation.changes.find(({ kind }) => kind === 'add-statement')?.statement,
  };
}

const NO_DIGEST = `sha256:${'0'.repeat(64)}`;
const NO_UPLOAD = '00000000-0000-4000-8000-000000000000';
/**
 * Calls that change nothing whoever makes them: they name what is not there. Access is decided first, so that anything but a
 * denial means that they are allowed. Not InitiateLayerUpload, which would begin an upload.
 */
const ATTEMPTS: ReadonlyMap<string, object> = new Map([
  ['ecr:BatchGetImage', { imageIds: [{ imageDigest: NO_DIGEST }] }],
  ['ecr:GetDownloadUrlForLayer', { layerDigest: NO_DIGEST }],
  ['ecr:BatchCheckLayerAvailability', { layerDigests: [NO_DIGEST] }],
  ['ecr:UploadLayerPart', { uploadId: NO_UPLOAD, partFirstByte: 0, partLastByte: 0, layerPartBlob: 'AA==' }],
  ['ecr:CompleteLayerUpload', { uploadId: NO_UPLOAD, layerDigests: [NO_DIGEST] }],
  ['ecr:PutImage', { imageManifest: '{}' }],
]);

/** @throws CallError when the server fails or is busy, which says nothing about access */
async function tryAction(client: Client, place: Place, action: string): Promise<ActionFacts> {
  const { registryId, repositoryName, caller } = place;
  const input = { registryId, repositoryName, ...ATTEMPTS.get(action) };
  try {
    await client.call('ecr', action.slice('ecr:'.length), input);
  } catch (error) {
    if (!(error instanceof CallError) || error.status >= 500 || /throttl|toomany/i.test(error.code))
      throw error;
    if (error.code === 'AccessDeniedException') {
      const why = refusalOf(error).message;
      const missing = /because no (resource)?/.exec(why);
      const named = missing?.[1] === undefined ? { Resource: arnOf(place) } : undefined;
      const granted = {
        Effect: 'Allow',
        Action: action,
        ...(named ?? { Principal: { AWS: caller.account } }),
      };
      return {
        action,
        allowed: false,
        why,
        statement: missing === null ? undefined : JSON.stringify(granted),
      };
    }
  }
  return { action, allowed: true, why: '' };
}

async function findRepositories(
  {
    target,
    source,
    account,
    name,
  }: {
    readonly target: Target;
    readonly source: CredentialSource;
    readonly account: string;
    readonly name: string;
  },
  regions: readonly string[],
): Promise<IamFacts['repositories']> {
  const found: { region: string; state: 'there' | 'absent' | 'not told' }[] = [];
  for (const region of regions) {
    try {
      const client = await connect({ ...target, region }, source);
      await client.call('ecr', 'DescribeRepositories', { registryId: account, repositoryNames: [name] });
      found.push({ region, state: 'there' });
    } catch (error) {
      if (!(error instanceof CallError)) throw error;
      found.push({ region, state: error.code === 'RepositoryNotFoundException' ? 'absent' : 'not told' });
    }
  }
  return found;
}

export function diagnoseIam(subject: Subject, facts: IamFacts): Finding[] {
  const { from, identity } = facts;
  if (facts.noCredentials !== undefined) {
    return [
      failure(
        'iam.credentials',
        from === undefined ? 'This machine has no AWS credentials.' : `There are no credentials by ${from}.`,
        facts.noCredentials,
        'eval "$(berth env)" on the machine of the server; elsewhere set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE.',
      ),
    ];
  }
  const findings = [ok('iam.credentials', `Credentials ${facts.accessKeyId ?? ''} come from ${from ?? ''}.`)];
  if (facts.unreachable !== undefined) {
    return [
      ...findings,
      failure(
        'iam.endpoint',
        `The API at ${facts.endpoint} does not answer.`,
        facts.unreachable,
        'Set AWS_ENDPOINT_URL to the address of the server.',
      ),
    ];
  }
  if (facts.identityRefused !== undefined)
    return [...findings, refusedIdentity(facts, facts.identityRefused)];
  if (identity !== undefined)
    findings.push(ok('iam.identity', `They are ${identity.arn}, account ${identity.account}.`));
  findings.push(loginFinding(facts));
  if (facts.actionsRefused !== undefined) {
    findings.push(
      warning(
        'iam.access',
        'Whether they may pull and push here cannot be told.',
        facts.actionsRefused.message,
        'Let somebody who may ask run: ' +
          `berth explain access ${identity?.arn ?? '<principal>'} ecr:BatchGetImage arn:aws:ecr:${facts.region}:<account>:repository/${subject.repository ?? '<repository>'}`,
      ),
    );
  }
  if (facts.pull !== undefined) findings.push(accessFinding('pull', subject, facts.pull));
  if (facts.push !== undefined) findings.push(accessFinding('push', subject, facts.push, facts.tried));
  return findings;
}

const KEY_PROBLEMS: Readonly<Record<string, readonly [what: string, why: string, fix: string]>> = {
  InvalidClientTokenId: [
    'The server does not know the access key.',
    "It is another server's or AWS's own, it is inactive or deleted, or it is temporary and its session token is missing.",
    'aws iam list-access-keys as an administrator shows keys and their status. Set AWS_SESSION_TOKEN with temporary keys.',
  ],
  SignatureDoesNotMatch: [
    'The secret key does not belong to the access key, or the clock of this machine is wrong.',
    'The server knows the access key, and the signature is another one.',
    'Copy both halves again. If the message says "expired", set the clock: timedatectl set-ntp true',
  ],
  ExpiredToken: [
    'The temporary credentials have expired.',
    'Sessions of roles end after the time they were asked for.',
    'Get new ones the way these were got.',
  ],
};

function refusedIdentity({ accessKeyId = '', from = '' }: IamFacts, { code, message }: Refusal): Finding {
  const [what, why, fix] = KEY_PROBLEMS[code] ?? [
    `The server refuses the credentials (${code}).`,
    message,
    'See the message.',
  ];
  return failure('iam.identity', `${what} (${accessKeyId} from ${from})`, `${why} It says: ${message}`, fix);
}

function loginFinding({ loginRefused, identity }: IamFacts): Finding {
  if (loginRefused === undefined) return ok('iam.login', 'They may log in to the registry.');
  const denied = loginRefused.code === 'AccessDeniedException';
  return failure(
    'iam.login',
    'They may not log in to the registry.',
    loginRefused.message,
    denied
      ? `Add to an identity policy of ${identity?.arn ?? 'the principal'}:\n` +
          `{"Effect":"Allow","Action":"ecr:GetAuthorizationToken","Resource":"*"}\n` +
          `All of it: berth explain deny ${loginRefused.requestId ?? '--last'}`
      : 'See the message.',
  );
}

function accessFinding(
  kind: 'pull' | 'push',
  { repository = '' }: Subject,
  actions: readonly ActionFacts[],
  tried = false,
): Finding {
  const refused = actions.filter(({ allowed }) => !allowed);
  const [first] = refused;
  if (first === undefined) {
    const may = `They may ${kind} ${kind === 'pull' ? 'from' : 'to'} ${repository}`;
    const untried = `${may}, if they may ecr:InitiateLayerUpload, which was not tried: it begins an upload.`;
    return ok(`iam.${kind}`, tried ? untried : `${may}.`);
  }
  const what = `They may not ${kind} ${kind === 'pull' ? 'from' : 'to'} ${repository}: ${refused.map(({ action }) => action).join(', ')}.`;
  const statements = joinStatements(refused.flatMap(({ statement }) => statement ?? []));
  const fix =
    statements.length > 0
      ? `Allow it where the explanation says:\n${statements.join('\n')}`
      : 'Narrow the statement that denies it.';
  // Who only pulls is well without it.
  return kind === 'pull'
    ? failure('iam.pull', what, first.why, fix)
    : warning('iam.push', what, first.why, fix);
}

/** Statements that differ in their action only, as one. */
function joinStatements(texts: readonly string[]): string[] {
  const actions = new Map<string, string[]>();
  for (const text of texts) {
    const { Action: action, ...rest } = JSON.parse(text) as { readonly Action: string };
    const key = JSON.stringify(rest);
    actions.set(key, [...new Set([...(actions.get(key) ?? []), action])]);
  }
  return [...actions].map(([key, names]) => {
    const { Effect, ...rest } = JSON.parse(key) as { readonly Effect: string };
    return JSON.stringify({ Effect, Action: names.length === 1 ? names[0] : names, ...rest });
  });
}

/** Host name against region, account and where the repository is. */
export function diagnoseRegion(subject: Subject, facts: IamFacts, env: NodeJS.ProcessEnv): Finding[] {
  const { host, repository } = subject;
  const named = readRegistryHost(host);
  const findings: Finding[] = [];
  if (/(?:^|\.)dkr[.-]ecr/.test(host) && named?.account === undefined) {
    findings.push(
      failure(
        'region.host',
        `${host} tries to be a registry of ECR's form and is none.`,
        'The form is {account}.dkr.ecr.{region}.{domain} with an account of twelve digits; the server refuses others.',
        'Take the repositoryUri that the server gives: aws ecr describe-repositories --query "repositories[].repositoryUri"',
      ),
    );
  }
  const set = env['AWS_REGION'] ? 'AWS_REGION' : 'AWS_DEFAULT_REGION';
  if (named?.region !== undefined && named.region !== facts.region) {
    findings.push(
      failure(
        'region.mismatch',
        `The host names the region ${named.region}, and this machine is set to ${facts.region}.`,
        `A login made in ${facts.region} is refused in ${named.region}.`,
        `export ${set}=${named.region}\naws ecr get-login-password --region ${named.region} | docker login --username AWS --password-stdin ${host}`,
      ),
    );
  } else findings.push(ok('region.mismatch', `The region is ${facts.region}.`));
  const own = facts.identity?.account;
  if (named?.account !== undefined && own !== undefined && named.account !== own) {
    findings.push(
      warning(
        'region.account',
        `The host names account ${named.account}, and the credentials are of ${own}.`,
        `Account ${own} may only use what repository policies of ${named.account} allow it.`,
        `Is it meant? Otherwise use the host of ${own}, or credentials of ${named.account}.`,
      ),
    );
  }
  const wanted = named?.region ?? facts.region;
  const here = facts.repositories.find(({ region }) => region === wanted);
  const elsewhere = facts.repositories.filter(({ region, state }) => region !== wanted && state === 'there');
  if (repository === undefined || here === undefined) return findings;
  if (here.state === 'there') findings.push(ok('region.repository', `${repository} exists in ${wanted}.`));
  if (here.state === 'absent' && elsewhere.length > 0) {
    const regions = elsewhere.map(({ region }) => region).join(', ');
    findings.push(
      failure(
        'region.repository',
        `${repository} does not exist in ${wanted}, but in ${regions}.`,
        'Every region has repositories of its own.',
        named?.region === undefined
          ? `export AWS_REGION=${elsewhere[0]?.region ?? ''}, and log in again.`
          : `Use the host of that region: ${host.replace(named.region, elsewhere[0]?.region ?? '')}`,
      ),
    );
  } else if (here.state === 'absent') {
    findings.push(
      failure(
        'region.repository',
        `${repository} does not exist in ${wanted}.`,
        'Pulls end with "not found", and pushes too unless a creation template makes repositories on push.',
        `aws ecr create-repository --region ${wanted} --repository-name ${repository}`,
      ),
    );
  }
  return findings;
}
