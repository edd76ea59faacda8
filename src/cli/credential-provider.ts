/**
 * The kubelet's credential provider (Kubernetes documentation, "Configure a kubelet image credential provider"; KEP-2133 and,
 * for the token of the pod's service account, KEP-4412): a request on standard input, a response on standard output. Without
 * a token the node pulls with its own role; with one, the pod with the role its service account names.
 */
import type { Config } from '../config.ts';
import { CommandError, type Surroundings } from './cli.ts';
import { assumeByToken, findMachineSource } from './credentials.ts';
import { findSetting, readImageHost, readPassword, stsOf } from './registry-login.ts';
import type { RegistryPassword } from './registry-login.ts';
import { readStandardInput } from './standard-input.ts';

const VERSIONS = ['v1', 'v1beta1', 'v1alpha1'].map((name) => `credentialprovider.kubelet.k8s.io/${name}`);
const REQUEST_CHARACTERS_MAX = 1_048_576;
/** How long the kubelet remembers that a registry is not Berth's. */
const NONE_SECONDS = 300;
const ROLE_ANNOTATIONS = ['eks.amazonaws.com/ecr-role-arn', 'eks.amazonaws.com/role-arn'];
const SESSION_NAME = 'kubelet-credential-provider';

interface ProviderRequest {
  readonly apiVersion: string;
  readonly image: string;
  readonly serviceAccountToken: string | undefined;
  readonly serviceAccountAnnotations: Readonly<Record<string, unknown>>;
}

/** `patterns`: registries that are Berth's whatever the server calls them, in the form of the kubelet's `matchImages`. */
export async function credentialProvider(
  config: Pick<Config, 'data'>,
  surroundings: Surroundings,
  patterns: readonly string[],
): Promise<void> {
  const request = readRequest(await readStandardInput(surroundings, REQUEST_CHARACTERS_MAX));
  const host = readImageHost(request.image);
  const found = host && (await findPassword(request, patterns, config, surroundings));
  const auth =
    found === undefined ? {} : { [host?.host ?? '']: { username: 'AWS', password: found.password } };
  const left = found === undefined ? 0 : Math.floor((found.expiresAt - Date.now()) / 1000);
  const seconds = found === undefined ? NONE_SECONDS : Math.max(0, Math.floor(left / 2));
  const response = {
    apiVersion: request.apiVersion,
    kind: 'CredentialProviderResponse',
    cacheKeyType: 'Registry',
    cacheDuration: `${seconds}s`,
    auth,
  };
  surroundings.stdout.write(`${JSON.stringify(response)}\n`);
}

async function findPassword(
  { image, serviceAccountToken, serviceAccountAnnotations }: ProviderRequest,
  patterns: readonly string[],
  config: Pick<Config, 'data'>,
  surroundings: Surroundings,
): Promise<RegistryPassword | undefined> {
  const { env } = surroundings;
  const host = readImageHost(image);
  const setting = host && (await findSetting(host, patterns, config, surroundings));
  if (host === undefined || setting === undefined) return undefined;
  const sts = await stsOf(setting.target, config.data, env);
  if (serviceAccountToken !== undefined) {
    const roleArn = readRole(serviceAccountAnnotations) ?? (env['AWS_ECR_ROLE_ARN'] || undefined);
    // INVARIANT: a pod that comes with a token never pulls as the node.
    if (roleArn === undefined) {
      throw new CommandError(`the service account names no role: annotate it with ${ROLE_ANNOTATIONS[0]}`);
    }
    const identity = { roleArn, sessionName: SESSION_NAME, token: serviceAccountToken };
    return readPassword(host, setting, await assumeByToken(identity, sts));
  }
  const source = await findMachineSource(env, sts);
  if (source === undefined) {
    throw new CommandError(
      'no credentials: no AWS variables, no profile, no container endpoint, and the instance metadata service does not answer',
    );
  }
  return readPassword(host, setting, source);
}

function readRole(annotations: Readonly<Record<string, unknown>>): string | undefined {
  for (const name of ROLE_ANNOTATIONS) {
    const value = annotations[name];
    if (typeof value === 'string' && value !== '') return value;
  }
  return undefined;
}

/** @throws CommandError that repeats nothing of the request, which may hold a token */
function readRequest(text: string): ProviderRequest {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw new CommandError('standard input is no JSON: the kubelet writes a CredentialProviderRequest there');
  }
  const { apiVersion, kind, image, serviceAccountToken, serviceAccountAnnotations } = (value ?? {}) as Record<
    string,
    unknown
  >;
  if (
    kind !== 'CredentialProviderRequest' ||
    typeof apiVersion !== 'string' ||
    !VERSIONS.includes(apiVersion)
  ) {
    throw new CommandError(`not a CredentialProviderRequest of ${VERSIONS.join(', ')}`);
  }
  if (typeof image !== 'string' || image === '') throw new CommandError('the request names no image');
  return {
    apiVersion,
    image,
    serviceAccountToken:
      typeof serviceAccountToken === 'string' && serviceAccountToken !== '' ? serviceAccountToken : undefined,
    serviceAccountAnnotations:
      typeof serviceAccountAnnotations === 'object' && serviceAccountAnnotations !== null
        ? (serviceAccountAnnotations as Record<string, unknown>)
        : {},
  };
}
