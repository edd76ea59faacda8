/** Explanations as advice: what was asked, why it ended so, what would change it. Pure: data in, lines out. */
import type * as berth from '../model/berth-types.ts';

/** Timestamps of answers are epoch seconds. */
export type Timed<Answer, Times extends keyof Answer> = Omit<Answer, Times> & {
  readonly [T in Times]: number;
};
export type DenialAnswer = Timed<berth.ExplainDenialResponse, 'time'>;
export type TokenAnswer = Omit<berth.ExplainTokenResponse, 'issuedAt' | 'expiresAt'> & {
  readonly issuedAt?: number;
  readonly expiresAt?: number;
};

const POLICIES: Readonly<Record<string, string>> = {
  identity: 'identity policy',
  boundary: 'permissions boundary',
  session: 'session policy',
  resource: 'repository policy',
  registry: 'registry policy',
  trust: 'trust policy of the role',
  'service-control': 'service control policy',
  'resource-control': 'resource control policy',
  endpoint: 'endpoint policy',
};
const wordOf = (policyType: string): string => POLICIES[policyType] ?? policyType;
const timeOf = (seconds: number): string =>
  `${new Date(seconds * 1000).toISOString().slice(0, 19).replace('T', ' ')} UTC`;

/** `statement "Sid" of the repository policy`, `statement 2 of the identity policy rights (arn)`. */
function nameStatement(it: {
  readonly policyType: string;
  readonly policyName?: string | undefined;
  readonly policyArn?: string | undefined;
  readonly statementIndex?: number | undefined;
  readonly statementSid?: string | undefined;
}): string {
  const statement =
    it.statementIndex === undefined
      ? 'a statement'
      : it.statementSid === undefined
        ? `statement ${it.statementIndex + 1}`
        : `statement "${it.statementSid}"`;
  return `${statement} of the ${namePolicy(it)}`;
}

function namePolicy(it: {
  readonly policyType: string;
  readonly policyName?: string | undefined;
  readonly policyArn?: string | undefined;
}): string {
  const word = wordOf(it.policyType);
  // What has no name of its own is called by its kind, with a blank, which names cannot have.
  const name = it.policyName === undefined || it.policyName.includes(' ') ? '' : ` ${it.policyName}`;
  return `${word}${name}${it.policyArn === undefined ? '' : ` (${it.policyArn})`}`;
}

function compareWords({ operator, key, expected, actual }: berth.ConditionComparison): string {
  const wanted = expected.map((value) => `"${value}"`).join(', ');
  const had = actual === undefined ? 'does not have the key' : `has "${actual.join('", "')}"`;
  return `${operator} ${key} wants ${wanted} and the request ${had}`;
}

/** One sentence: which policy decided, or which should have allowed and did not. */
export function whyOf({ decision, decidedBy }: berth.DecisionExplanation): string {
  if (decision === 'explicitDeny') return `${capital(nameStatement(decidedBy))} denies it.`;
  if (decision === 'implicitDeny') return `No ${wordOf(decidedBy.policyType)} allows it.`;
  if (decidedBy.policyType === 'root') return 'Root may do everything in its account.';
  if (decidedBy.policyType === 'always') return 'Nobody can be refused this.';
  return `${capital(nameStatement(decidedBy))} allows it.`;
}

const capital = (text: string): string => text.slice(0, 1).toUpperCase() + text.slice(1);

export function explanationLines(explanation: berth.DecisionExplanation, principalArn: string): string[] {
  const lines = [`Why: ${whyOf(explanation)}`];
  for (const condition of explanation.conditions) {
    const { operator, key, expected, actual } = condition;
    lines.push(
      `     Its condition is met: ${operator} ${key} ${expected.map((it) => `"${it}"`).join(', ')}` +
        (actual === undefined
          ? ' (the request does not have the key)'
          : ` (the request has "${actual.join('", "')}")`),
    );
  }
  if (explanation.policies.length > 0) lines.push('', 'Policies considered:');
  for (const policy of explanation.policies) lines.push(...policyLines(policy));
  for (const account of explanation.withheldAccounts) {
    lines.push(
      '',
      `What the policies of account ${account} say is that account's to see; ask there for the rest.`,
    );
  }
  if (explanation.changes.length > 0) {
    lines.push('', 'What would allow it:');
    explanation.changes.forEach((change, i) =>
      lines.push(
        ...changeLines(change, principalArn).map((line, j) =>
          j === 0 ? `  ${i + 1}. ${line}` : `     ${line}`,
        ),
      ),
    );
  }
  return lines;
}

const OUTCOMES = { allow: 'allows', deny: 'denies', neutral: 'says nothing' } as const;

function policyLines({
  policyType,
  name,
  arn,
  outcome,
  statements,
  statementsOmitted,
}: berth.ConsideredPolicy): string[] {
  const lines = [`  ${namePolicy({ policyType, policyName: name, policyArn: arn })} ${OUTCOMES[outcome]}`];
  for (const { index, sid, effect, matched, mismatchedElement, condition } of statements) {
    const why = matched
      ? 'applies'
      : condition === undefined
        ? `does not apply: its ${mismatchedElement ?? 'elements'} is about something else`
        : `does not apply: ${compareWords(condition)}`;
    lines.push(`    ${index + 1}. ${effect}${sid === undefined ? '' : ` "${sid}"`} ${why}`);
  }
  if (statementsOmitted > 0) lines.push(`    and ${statementsOmitted} statements about other actions`);
  return lines;
}

function changeLines(change: berth.PolicyChange, principalArn: string): string[] {
  const { kind, policyType, account, statement, nearest } = change;
  const lines: string[] = [];
  const fixed = change.policyArn?.startsWith('arn:aws:iam::aws:policy/') === true;
  if (kind === 'narrow-deny') {
    lines.push(
      fixed
        ? `Use another policy in account ${account}: ${nameStatement(change)} covers this request, and only AWS can change it.`
        : `Narrow ${nameStatement(change)} in account ${account}, so that it no longer covers this request.`,
    );
  } else if (fixed && kind === 'add-statement') {
    lines.push(
      `Use a policy of your own instead of the ${namePolicy(change)}, which only AWS can change; it needs`,
      String(statement),
    );
  } else if (kind === 'pass-other-session-policy') {
    lines.push('Begin another session whose session policy has', String(statement));
  } else if (policyType === 'identity') {
    lines.push(`Add to an identity policy of ${principalArn}:`, String(statement));
  } else lines.push(`Add to the ${namePolicy(change)} in account ${account}:`, String(statement));
  if (nearest !== undefined) {
    const named = nameStatement({ ...nearest, policyType });
    const why =
      nearest.condition === undefined
        ? `its ${nearest.mismatchedElement} is about something else.`
        : `${compareWords(nearest.condition)}.`;
    lines.push(`Closest is ${named}: ${why}`);
  }
  return lines;
}

export function denialLines(answer: DenialAnswer): string[] {
  const { requestId, time, region, sourceIp, principalArn, action, resourceArn, explanation } = answer;
  return [
    `Denied: ${principalArn} may not ${action} on ${resourceArn}`,
    `        ${timeOf(time)}, ${sourceIp === undefined ? '' : `from ${sourceIp}, `}region ${region}, request ${requestId}`,
    `        ${answer.message}`,
    '',
    ...explanationLines(explanation, principalArn),
  ];
}

export function accessLines(answer: berth.ExplainAccessResponse): string[] {
  const { principalArn, action, resourceArn, foreignPrincipal, explanation } = answer;
  const verdict = explanation.allowed ? 'Allowed' : 'Denied';
  return [
    `${verdict}: ${principalArn} ${explanation.allowed ? 'may' : 'may not'} ${action} on ${resourceArn}` +
      (foreignPrincipal && explanation.allowed ? ', as far as their own account lets them' : ''),
    '',
    ...explanationLines(explanation, principalArn),
  ];
}

export function imageLines(answer: berth.ExplainImageResponse): string[] {
  const { imageUri, resolved, reason, host, account, region, scopeFrom } = answer;
  if (!resolved) return [`${imageUri} leads nowhere: ${reason ?? ''}`];
  const from = scopeFrom === 'host' ? 'the host name says so' : 'the host names none, so yours';
  const lines = [
    imageUri,
    `  host        ${host ?? ''}`,
    `  registry    account ${account ?? ''}, region ${region ?? ''} (${from})`,
    `  repository  ${answer.repositoryName ?? ''}${answer.repositoryExists === false ? ': does not exist there' : ''}`,
  ];
  if (answer.repositoryExists === true) {
    const named = [answer.imageTag && `tag ${answer.imageTag}`, answer.imageDigest]
      .filter(Boolean)
      .join(' = ');
    lines.push(`  image       ${named}${answer.imageExists === true ? '' : ': does not exist there'}`);
  }
  if (reason !== undefined) lines.push('', reason);
  lines.push('', `Who may pull (of account ${accountOf(answer) ?? 'yours'}):`);
  for (const access of answer.principals) lines.push(`  ${pullLine(access)}`);
  if (answer.principals.length === 0) lines.push('  nobody');
  if (answer.externalPrincipals.length > 0) {
    lines.push('', 'Of others, whom the repository policy names (their own account must allow it too):');
    for (const access of answer.externalPrincipals) lines.push(`  ${pullLine(access)}`);
  }
  return lines;
}

const accountOf = ({ principals }: berth.ExplainImageResponse): string | undefined =>
  principals[0]?.principal.split(':')[4];

function pullLine(access: berth.PullAccess): string {
  const { principal, mayPull, policyType, refusedAction } = access;
  const by =
    access.policyName === undefined && mayPull && policyType === 'root' ? 'root' : namePolicy(access);
  if (mayPull) return `yes  ${principal}  by ${by}`;
  return access.policyName === undefined
    ? `no   ${principal}  no ${wordOf(policyType)} allows ${refusedAction ?? ''}`
    : `no   ${principal}  ${namePolicy(access)} denies ${refusedAction ?? ''}`;
}

/** `now` in milliseconds. */
export function tokenLines(answer: TokenAnswer, now: number): string[] {
  const { state, reason, account, region, principalArn, accessKeyId, issuedAt, expiresAt, actions } = answer;
  const verdict = {
    active: 'The token is good.',
    expired: 'The token has expired.',
    revoked: 'The token does not work any more.',
    unknown: 'The token is unknown.',
  }[state];
  const lines = [`${verdict}${reason === undefined ? '' : ` ${reason}`}`];
  if (account === undefined || issuedAt === undefined || expiresAt === undefined) return lines;
  const hours = Math.abs(expiresAt - now / 1000) / 3600;
  const left = `${hours.toFixed(1)} hours ${expiresAt * 1000 > now ? 'left' : 'ago'}`;
  lines.push(
    `  registry   account ${account}, region ${region ?? ''}`,
    `  principal  ${principalArn ?? 'gone'}${accessKeyId === undefined ? '' : ` (access key ${accessKeyId})`}`,
    `  issued     ${timeOf(issuedAt)}`,
    `  expires    ${timeOf(expiresAt)}, ${left}`,
  );
  if (actions.length === 0) return lines;
  lines.push('', 'On repositories of that registry that no policy singles out, its holder may');
  for (const { action, allowed, policyType, policyName, policyArn } of actions) {
    const by = allowed || policyName !== undefined ? namePolicy({ policyType, policyName, policyArn }) : '';
    lines.push(
      allowed
        ? `  yes  ${action}  by ${by}`
        : `  no   ${action}  ${by === '' ? `no ${wordOf(policyType)} allows it` : `${by} denies it`}`,
    );
  }
  return lines;
}
