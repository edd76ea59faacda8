/**
 * The `/v2/` data plane: the OCI distribution protocol with Amazon ECR's manners. A request is authenticated, its path
 * read, its repository looked up, its actions authorised, and only then does its outcome depend on what exists.
 */
import { Fault, repositoryNotFound } from '../domain/faults.ts';
import { repositoryArn } from '../domain/names.ts';
import type { Exchange } from '../http/http.ts';
import type { Principal, RequestFacts } from '../identity/identity.ts';
import { challenge, createPasswordReader } from './authenticate.ts';
import { type OciServices, commonHeaders } from './call.ts';
import { listRepositories } from './catalog.ts';
import { beginsPush, createOnPush } from './create-on-push.ts';
import { routeUnknown, sendFailure, sendFault } from './errors.ts';
import { LIMITS } from '../lib/limits.ts';
import { parsePath, type RepositoryTarget } from './path.ts';
import { type Method, type Route, ROUTES } from './routes.ts';
import { resolveScope, type Scope } from './scope.ts';

export { sendFault } from './errors.ts';
export { scopeOfHost } from './scope.ts';

const NO_TAGS: ReadonlyMap<string, string> = new Map();

export type OciDoorOptions = Omit<OciServices, 'idleMs'> & { readonly idleMs?: number };

/**
 * Makes the door. It answers every exchange whose path is `/v2` or below, and never rejects: what goes wrong becomes an
 * OCI error, a cut connection, or (when it is no Fault) a call of `onError` besides. `idleMs` defaults to
 * LIMITS.idleSocketMs.
 */
export function createOciDoor(options: OciDoorOptions): (exchange: Exchange) => Promise<void> {
  const services: OciServices = { ...options, idleMs: options.idleMs ?? LIMITS.idleSocketMs };
  const readPassword = createPasswordReader();
  return async (exchange) => {
    try {
      const password = readPassword(exchange.request.headers.authorization);
      if (password === undefined) challenge(exchange, commonHeaders(exchange));
      else await answer(services, exchange, password);
    } catch (error) {
      sendFailure(exchange, error, services.onError);
    }
  };
}

async function answer(services: OciServices, exchange: Exchange, password: string): Promise<void> {
  const { registry, identity } = services;
  const now = services.clock();
  const token = await identity.openRegistryToken(password, now).catch((error: unknown) => {
    describeRefused(exchange);
    throw error;
  });
  const { principal } = token;
  exchange.principal = principal;

  const target = parsePath(exchange.path);
  if (target === undefined) throw routeUnknown();
  const scope = resolveScope(
    exchange.host,
    exchange.rawQuery.includes('ns=') ? (exchange.query.get('ns') ?? undefined) : undefined,
    { account: principal.account, region: token.region },
    services.isRegion,
  );
  const { namespace } = scope;
  // The specification (after 1.1) wants it said again. It is the client's text, and a header takes only some characters.
  if (namespace !== undefined && /^[!-~]+$/.test(namespace))
    exchange.response.setHeader('OCI-Namespace', namespace);
  if (target.kind === 'base') return answerBase(exchange);
  const facts = {
    requestId: exchange.requestId,
    region: scope.region,
    now,
    sourceIp: exchange.sourceIp,
    secure: exchange.secure,
    userAgent: exchange.request.headers['user-agent'],
  };
  if (target.kind === 'catalog') return await answerCatalog(services, exchange, principal, scope, facts);
  const route = findRoute(exchange, target);
  if (route === undefined) return;

  const address = { account: scope.account, region: scope.region, name: target.name };
  const actions = route.actions(exchange);
  exchange.action = nameOf(target, actions);
  services.throttle?.(principal, actions, scope.region);
  const repository = await registry.findRepository(address);
  // INVARIANT: the caller is judged before anything depends on whether the repository exists.
  const resource = repositoryArn(address);
  exchange.region = scope.region;
  exchange.resources = [resource];
  exchange.parameters = describeTarget(exchange, scope.account, target);
  await identity.authorize(
    principal,
    actions.map((action) => ({ action, resource })),
    facts,
    repository ?? { account: scope.account, policy: undefined, tags: NO_TAGS },
  );
  if (repository === undefined && !beginsPush(target.kind, exchange.method))
    throw repositoryNotFound(target.name, scope.account);
  const call = { services, exchange, principal, facts, scope };
  await route.run(
    { ...call, repository: repository ?? (await createOnPush(services, principal, facts, address)) },
    target,
  );
}

/** The operation by which logs know a call that needs these actions. */
function nameOf(target: RepositoryTarget, actions: readonly string[]): string | undefined {
  return target.kind === 'referrers' ? 'ecr:ListImageReferrers' : actions.at(-1);
}

/** What a call was about whose token was refused, for the logs: nothing of it was looked at. */
function describeRefused(exchange: Exchange): void {
  let target: ReturnType<typeof parsePath>;
  try {
    target = parsePath(exchange.path);
  } catch {
    return;
  }
  if (target === undefined) return;
  if (target.kind === 'base') exchange.action = VERIFY;
  else if (target.kind === 'catalog') exchange.action = 'ecr:DescribeRepositories';
  else {
    const methods: { readonly [M in Method]?: Pick<Route<never>, 'actions'> } = ROUTES[target.kind];
    const route = Object.hasOwn(methods, exchange.method) ? methods[exchange.method as Method] : undefined;
    exchange.action = route && nameOf(target, route.actions(exchange));
    exchange.parameters = describeTarget(exchange, undefined, target);
  }
}

/** The target in the words of the ECR API, as CloudTrail shows the calls of a push or pull. */
function describeTarget(
  { method }: Exchange,
  registryId: string | undefined,
  target: RepositoryTarget,
): object {
  const repositoryName = target.name;
  switch (target.kind) {
    case 'manifest': {
      const { reference } = target;
      const imageId = 'tag' in reference ? { imageTag: reference.tag } : { imageDigest: reference.digest };
      if (method === 'PUT') return { registryId, repositoryName, ...imageId };
      return { registryId, repositoryName, imageIds: [imageId] };
    }
    case 'blob':
      return { registryId, repositoryName, layerDigest: target.digest };
    case 'referrers':
      return { registryId, repositoryName, subjectId: { imageDigest: target.digest } };
    case 'upload':
      return { registryId, repositoryName, uploadId: target.id };
    default:
      return { registryId, repositoryName };
  }
}

/** A name of our own: CloudTrail has none for this call. */
const VERIFY = 'ecr:VerifyAuthorizationToken';

/** `GET /v2/`: a valid token is all it asks for; every `docker login` ends here. */
function answerBase(exchange: Exchange): void {
  exchange.action = VERIFY;
  if (exchange.method !== 'GET' && exchange.method !== 'HEAD') return refuseMethod(exchange, ['GET', 'HEAD']);
  const headers = commonHeaders(exchange);
  headers.push('Content-Type', 'application/json');
  exchange.send(200, headers, '{}');
}

/** `GET /v2/_catalog`, for who may describe all repositories of the registry. */
async function answerCatalog(
  { registry, identity, throttle }: OciServices,
  exchange: Exchange,
  principal: Principal,
  scope: Scope,
  facts: RequestFacts,
): Promise<void> {
  if (exchange.method !== 'GET' && exchange.method !== 'HEAD') return refuseMethod(exchange, ['GET', 'HEAD']);
  const check = {
    action: 'ecr:DescribeRepositories',
    resource: repositoryArn({ ...scope, name: '*' }),
  };
  exchange.action = check.action;
  throttle?.(principal, [check.action], scope.region);
  exchange.region = scope.region;
  exchange.resources = [check.resource];
  exchange.parameters = { registryId: scope.account };
  const side = { account: scope.account, policy: undefined, tags: NO_TAGS };
  await identity.authorize(principal, [check], facts, side);
  await listRepositories(exchange, registry, scope);
}

/** The route of a method; when the target has none it is answered 405. */
function findRoute<T extends RepositoryTarget>(exchange: Exchange, target: T): Route<T> | undefined {
  const methods = ROUTES[target.kind];
  // The table's type ties each kind to its handler; the compiler cannot follow that through a union.
  if (Object.hasOwn(methods, exchange.method)) return methods[exchange.method as Method] as Route<T>;
  refuseMethod(exchange, Object.keys(methods));
  return undefined;
}

function refuseMethod(exchange: Exchange, allowed: readonly string[]): void {
  const fault = new Fault('MethodNotAllowed', 'The operation is unsupported.');
  sendFault(exchange, fault, ['Allow', allowed.join(', ')]);
}
