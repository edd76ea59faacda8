/**
 * Audit records in CloudTrail's format (ecr-api.md §25.2), one JSON text per call, and per thing ECR does by itself. Made on
 * the path of every request, so whatever repeats (who asks, with what program, on which resource, in which second) is
 * rendered once and kept.
 */
import { randomUUID } from 'node:crypto';

/** Who asked: what `userIdentity` needs. Identity's principals are such. */
export interface AuditedPrincipal {
  readonly caller: {
    readonly kind: string;
    readonly account: string;
    readonly arn: string;
    readonly id: string;
    /** role sessions */
    readonly roleArn?: string | undefined;
    readonly roleId?: string | undefined;
    /** services, and the providers of web identities */
    readonly serviceName?: string | undefined;
    readonly federatedProvider?: string | undefined;
  };
  readonly accessKeyId: string;
  readonly userName: string | undefined;
}

/** A call that was answered: what a record says. `Exchange` is one. */
export interface AuditedCall {
  readonly requestId: string;
  /** `service:Operation` */
  readonly action: string | undefined;
  /** `undefined` when the caller could not be authenticated */
  readonly principal: AuditedPrincipal | undefined;
  readonly region: string | undefined;
  /** ARNs; `*` is left out */
  readonly resources: readonly string[];
  readonly parameters: object | undefined;
  /** what was answered; shown of changes only */
  readonly outcome?: object | undefined;
  readonly faultCode: string | undefined;
  readonly faultMessage: string | undefined;
  readonly sourceIp: string;
  /** A request header by its name in lower case. */
  header(name: string): string | undefined;
}

export interface RecorderOptions {
  /** epoch milliseconds */
  readonly clock: () => number;
  /** of calls that name none */
  readonly account: string;
  readonly region: string;
}

/** Something that was done without a call: what a record says. Plain data. */
export type ServiceEvent = LifecycleServiceEvent | ActivationServiceEvent;

interface ServiceEventSubject {
  readonly repositoryName: string;
  /** ARN of the repository */
  readonly resource: string;
  readonly region: string;
}

/** A part of a run of a lifecycle policy, or of a preview of one; times in milliseconds since the epoch. */
export interface LifecycleServiceEvent extends ServiceEventSubject {
  readonly name: 'PolicyExecutionEvent' | 'DryRunEvent';
  readonly policy: ServiceEventPolicy;
  /** images that were, or in a preview would be, acted on */
  readonly actions: readonly ServiceEventImage[];
  /** images that a rule would have acted on */
  readonly failures: readonly (ServiceEventImage & {
    readonly failureCode: string;
    readonly failureReason: string;
  })[];
}

export interface ServiceEventPolicy {
  readonly id: string;
  /** `undefined` before the first run */
  readonly evaluatedAt: number | undefined;
  readonly rules: readonly {
    readonly rulePriority: number;
    readonly description?: string;
    readonly selection: {
      readonly tagStatus: string;
      readonly tagPatternList?: readonly string[];
      readonly tagPrefixList?: readonly string[];
      readonly countType: string;
      readonly countUnit?: string;
      readonly countNumber: number;
    };
    readonly action: { readonly type: string };
  }[];
}

export interface ServiceEventImage {
  readonly digest: string;
  readonly tags: readonly string[];
  readonly pushedAt: number;
  readonly rulePriority: number;
}

/** An archived image was restored. */
export interface ActivationServiceEvent extends ServiceEventSubject {
  readonly name: 'ImageActivationEvent';
  readonly digest: string;
}

/** CloudTrail's own words for what it does not show. */
const HIDDEN = '"HIDDEN_DUE_TO_SECURITY_REASONS"';
const SECRET_NAME = /secret|password|token|assertion/i;
/** Rules about passwords, which are none. */
const PASSWORD_RULE =
  /^(minimumPasswordLength|maxPasswordAge|passwordReusePrevention|allowUsersToChangePassword|passwordResetRequired)$/i;

const TEXT_CHARACTERS_MAX = 16_384;
const LIST_ITEMS_MAX = 100;
const DEPTH_MAX = 6;
const MESSAGE_CHARACTERS_MAX = 1024;
const USER_AGENT_CHARACTERS_MAX = 256;
const REMEMBERED_MAX = 1000;
/** Tags of an image that a service event shows. */
const EVENT_TAGS_MAX = 100;
/** Who does what nobody called for. */
const SERVICE = 'ecr.amazonaws.com';

/** Faults of authentication: their sentences may repeat what the client sent as its credential. */
const AUTHENTICATION =
  /^(IncompleteSignature|InvalidSignature|SignatureDoesNotMatch|UnrecognizedClient|InvalidClientTokenId|ExpiredToken|MissingAuthenticationToken|InvalidRegistryToken|ExpiredRegistryToken)/;

/** Operations that change nothing: to CloudTrail those that hand out sessions are such. */
const READ_ONLY =
  /^(AssumeRole|Get|List|Describe|Explain|Follow|Batch(Get|Check)|Check|Verify|Preview|Validate|Simulate|Generate)/;

/**
 * Makes the function that renders a call as one record without a line end. INVARIANT: no secret of a request comes in:
 * bytes and members with secret names are hidden, and messages lose what they quote of credentials.
 */
export function createRecorder(options: RecorderOptions): (call: AuditedCall) => string {
  const identities = new WeakMap<AuditedPrincipal, string>();
  const events = new Remembered(eventOf);
  const agents = new Remembered((agent) => quote(agent.slice(0, USER_AGENT_CHARACTERS_MAX)));
  const resources = new Remembered(resourceOf);
  const parameters = createParameters();
  const timeOf = createTimes();

  const identityOf = (principal: AuditedPrincipal): string => {
    let json = identities.get(principal);
    if (json === undefined) {
      json = JSON.stringify(userIdentity(principal));
      identities.set(principal, json);
    }
    return json;
  };

  return (call) => {
    const { principal, faultCode } = call;
    const event = events.of(call.action ?? '');
    let account = '';
    let named = '';
    for (const arn of call.resources) {
      if (arn === '*') continue;
      const resource = resources.of(arn);
      account ||= resource.account;
      named += named === '' ? resource.json : `,${resource.json}`;
    }
    account ||= accountId(principal?.caller.account) || options.account;
    const agent = call.header('user-agent');
    return (
      `{"eventVersion":"1.11","userIdentity":${principal === undefined ? unknownIdentity(call) : identityOf(principal)}` +
      `,"eventTime":"${timeOf(options.clock())}",${event.head},"awsRegion":${quote(call.region ?? options.region)}` +
      `,"sourceIPAddress":"${call.sourceIp}"` +
      (agent === undefined ? '' : `,"userAgent":${agents.of(agent)}`) +
      (faultCode === undefined
        ? ''
        : `,"errorCode":${quote(faultCode)},"errorMessage":${quote(safeMessage(faultCode, call.faultMessage ?? ''))}`) +
      `,"requestParameters":${call.parameters === undefined ? 'null' : parameters(call.parameters, 0)}` +
      `,"responseElements":${event.readOnly || faultCode !== undefined || call.outcome === undefined ? 'null' : parameters(call.outcome, 0)}` +
      `,"requestID":"${call.requestId}","eventID":"${randomUUID()}"` +
      `,"readOnly":${event.readOnly}${named === '' ? '' : `,"resources":[${named}]`}` +
      `,"eventType":"AwsApiCall","managementEvent":true,"recipientAccountId":"${account}","eventCategory":"Management"}`
    );
  };
}

/**
 * Makes the function that renders a service event as one record without a line end. Its members are those of the records
 * CloudTrail has of ECR (user guide, "Logging Amazon ECR actions with AWS CloudTrail"); tags beyond 100 of an image are left out.
 */
export function createServiceEventRecorder({
  clock,
}: Pick<RecorderOptions, 'clock'>): (event: ServiceEvent) => string {
  const events = new Remembered(eventOf);
  const resources = new Remembered(resourceOf);
  const timeOf = createTimes();
  return (event) => {
    const { account, json } = resources.of(event.resource);
    // WHY: CloudTrail has the runs as read only, although they delete; a restore is unknown, and told as the change it is.
    const readOnly = event.name !== 'ImageActivationEvent';
    return (
      `{"eventVersion":"1.11","userIdentity":{"accountId":"${account}","invokedBy":"${SERVICE}"}` +
      `,"eventTime":"${timeOf(clock())}",${events.of(`ecr:${event.name}`).head},"awsRegion":${quote(event.region)}` +
      `,"sourceIPAddress":"${SERVICE}","userAgent":"${SERVICE}","requestParameters":null,"responseElements":null` +
      `,"eventID":"${randomUUID()}","readOnly":${readOnly},"resources":[${json}],"eventType":"AwsServiceEvent"` +
      `,"managementEvent":true,"recipientAccountId":"${account}"` +
      `,"serviceEventDetails":${JSON.stringify(serviceEventDetails(event))},"eventCategory":"Management"}`
    );
  };
}

function serviceEventDetails(event: ServiceEvent): object {
  const { repositoryName } = event;
  if (event.name === 'ImageActivationEvent') {
    const done = { targetStorageClass: 'STANDARD', result: 'SUCCESS', imageStatus: 'ACTIVE' };
    return { repositoryName, imageDigest: event.digest, ...done };
  }
  const { id: policyId, evaluatedAt: lastEvaluatedAt = 0, rules } = event.policy;
  const imageOf = ({ digest, tags, pushedAt, rulePriority }: ServiceEventImage) => ({
    lifecycleEventImage: {
      digest,
      tagStatus: tags.length === 0 ? 'Untagged' : 'Tagged',
      tagList: tags.slice(0, EVENT_TAGS_MAX),
      pushedAt,
    },
    rulePriority,
  });
  return {
    repositoryName,
    lifecycleEventPolicy: {
      lifecycleEventRules: rules.map(lifecycleEventRule),
      lastEvaluatedAt,
      policyVersion: 1,
      policyId,
    },
    lifecycleEventImageActions: event.actions.map(imageOf),
    lifecycleEventFailureDetails: event.failures.map((failure) => {
      const { failureCode, failureReason } = failure;
      return { ...imageOf(failure), failureCode, failureReason };
    }),
  };
}

/** A rule in the words of service events. */
function lifecycleEventRule({
  rulePriority,
  description,
  selection,
  action,
}: ServiceEventPolicy['rules'][number]): object {
  const { tagStatus, tagPrefixList = [], tagPatternList = [], countType, countUnit, countNumber } = selection;
  return {
    rulePriority,
    description,
    lifecycleEventSelection: {
      tagStatus: capitalized(tagStatus),
      tagPrefixList,
      tagPatternList,
      countType: COUNT_TYPES[countType] ?? countType,
      countUnit: countUnit && capitalized(countUnit),
      countNumber,
    },
    action: action.type,
  };
}

const COUNT_TYPES: Readonly<Record<string, string>> = {
  imageCountMoreThan: 'Image count more than',
  sinceImagePushed: 'Time since image pushed',
  sinceImagePulled: 'Time since image pulled',
  sinceImageTransitioned: 'Time since image transitioned',
};

function capitalized(word: string): string {
  return word.slice(0, 1).toUpperCase() + word.slice(1);
}

/** `eventTime`, made once a second. */
function createTimes(): (now: number) => string {
  let second = -1;
  let time = '';
  return (now) => {
    const current = Math.floor(now / 1000);
    if (current !== second) {
      second = current;
      time = `${new Date(current * 1000).toISOString().slice(0, 19)}Z`;
    }
    return time;
  };
}

/** What was made of a key, kept; everything is forgotten when strangers have filled the map. */
class Remembered<Value> {
  readonly #map = new Map<string, Value>();
  readonly #make: (key: string) => Value;

  constructor(make: (key: string) => Value) {
    this.#make = make;
  }

  of(key: string): Value {
    let value = this.#map.get(key);
    if (value === undefined) {
      value = this.#make(key);
      if (this.#map.size >= REMEMBERED_MAX) this.#map.clear();
      this.#map.set(key, value);
    }
    return value;
  }
}

const PLAIN = /^[\w./:@+=,-]*$/;

function quote(text: string): string {
  return PLAIN.test(text) ? `"${text}"` : JSON.stringify(text);
}

function eventOf(action: string): { readonly head: string; readonly readOnly: boolean } {
  const [service = 'ecr', name = 'UnknownOperation'] = (action || 'ecr:UnknownOperation').split(':');
  return {
    head: `"eventSource":"${service}.amazonaws.com","eventName":"${name}"`,
    readOnly: READ_ONLY.test(name),
  };
}

/** `userIdentity` of CloudTrail's user guide, by kind. */
function userIdentity({ caller, accessKeyId, userName }: AuditedPrincipal): object {
  const { kind, account: accountId, arn, id: principalId } = caller;
  switch (kind) {
    case 'root':
      return { type: 'Root', principalId, arn, accountId, accessKeyId };
    case 'user':
      return { type: 'IAMUser', principalId, arn, accountId, accessKeyId, userName };
    case 'role-session': {
      const role = {
        type: 'Role',
        principalId: caller.roleId ?? principalId.split(':')[0],
        arn: caller.roleArn,
        accountId,
        userName: caller.roleArn?.split('/').at(-1),
      };
      const sessionContext = { sessionIssuer: role };
      return { type: 'AssumedRole', principalId, arn, accountId, accessKeyId, sessionContext };
    }
    case 'federated-user':
      return { type: 'FederatedUser', principalId, arn, accountId, accessKeyId };
    case 'service':
      return { type: 'AWSService', invokedBy: caller.serviceName };
    case 'web-identity':
      return {
        type: 'WebIdentityUser',
        principalId,
        userName,
        identityProvider: caller.federatedProvider,
      };
    default:
      return { type: 'AWSAccount', principalId: '', accountId: 'ANONYMOUS_PRINCIPAL' };
  }
}

/** Who it was is not known; which key was named may be. */
function unknownIdentity(call: AuditedCall): string {
  const key = /\bCredential=(\w{16,128})\//.exec(call.header('authorization') ?? '')?.[1];
  return key === undefined ? '{"type":"Unknown"}' : `{"type":"Unknown","accessKeyId":"${key}"}`;
}

function accountId(text: string | undefined): string {
  return text !== undefined && /^\d{12}$/.test(text) ? text : '';
}

function resourceOf(arn: string): { readonly json: string; readonly account: string } {
  const [, , service, , account, name = ''] = arn.split(':');
  const type =
    service === 'ecr' && name.startsWith('repository/')
      ? 'AWS::ECR::Repository'
      : service === 'iam' && name.startsWith('role/')
        ? 'AWS::IAM::Role'
        : undefined;
  return {
    account: accountId(account),
    json: JSON.stringify({ accountId: account || undefined, type, ARN: arn }),
  };
}

/**
 * Makes the function that renders parameters. Members begin with a small letter, as CloudTrail shows those of every
 * service; what is too long, too many or too deep is left out.
 */
function createParameters(): (value: unknown, depth: number) => string {
  const names = new Remembered((name) => ({
    json: `${quote(name.slice(0, 1).toLowerCase() + name.slice(1))}:`,
    secret: SECRET_NAME.test(name) && !PASSWORD_RULE.test(name),
  }));
  const render = (value: unknown, depth: number): string => {
    if (typeof value === 'string') {
      return value.length <= TEXT_CHARACTERS_MAX ? quote(value) : `"omitted: ${value.length} characters"`;
    }
    if (typeof value === 'number' || typeof value === 'boolean') return String(value);
    if (typeof value !== 'object' || value === null || depth > DEPTH_MAX) return 'null';
    if (Array.isArray(value)) {
      let items = '';
      for (const item of value.slice(0, LIST_ITEMS_MAX) as unknown[])
        items += (items === '' ? '' : ',') + render(item, depth + 1);
      return `[${items}]`;
    }
    if (value instanceof Uint8Array) return `"omitted: ${value.length} bytes"`;
    if (value instanceof Date) return quote(Number.isNaN(value.getTime()) ? '' : value.toISOString());
    let members = '';
    for (const key of Object.keys(value)) {
      const member = (value as Readonly<Record<string, unknown>>)[key];
      if (member === undefined) continue;
      const name = names.of(key);
      members += (members === '' ? '' : ',') + name.json + (name.secret ? HIDDEN : render(member, depth + 1));
    }
    return `{${members}}`;
  };
  return render;
}

/** A fault's sentence without what it may quote of a credential or of a secret parameter. */
function safeMessage(code: string, message: string): string {
  const said = AUTHENTICATION.test(code)
    ? (/^[^:'"(=\n]*/.exec(message)?.[0] ?? '').trimEnd()
    : message.replace(/\bValue '[\s\S]*?' at /g, 'Value at ');
  return said.slice(0, MESSAGE_CHARACTERS_MAX);
}
