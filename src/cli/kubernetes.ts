/**
 * Files that make a cluster pull from Berth: certificates and hosts for containerd (containerd `docs/hosts.md`), `registries.yaml`
 * for k3s, a cluster for kind, the kubelet's credential provider, roles for pods. Made of checked names only, so that nothing
 * an argument holds can mean something in YAML, TOML, a shell or a path.
 */
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Config } from '../config.ts';
import { CommandError, type Surroundings } from './cli.ts';
import { readServerRecord } from './data-directory.ts';

export const CLUSTERS = ['kind', 'k3s', 'containerd', 'kubelet', 'eks'] as const;
export type Cluster = (typeof CLUSTERS)[number];

export interface KubernetesFlags {
  readonly for: Cluster;
  readonly registry: string | undefined;
  readonly endpoint: string | undefined;
  readonly ca: string | undefined;
  readonly out: string | undefined;
  readonly pods: boolean;
}

interface Facts {
  /** host, with port if it has one */
  readonly registry: string;
  /** scheme and authority */
  readonly endpoint: string;
  readonly account: string;
  readonly region: string;
  readonly ca: string | undefined;
  /** pods pull with the roles of their service accounts */
  readonly pods: boolean;
  /** where generated files end up, for what has to name them by absolute path */
  readonly directory: string;
}

type Files = Readonly<Record<string, string>>;

const REGISTRY = /^[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:\d{1,5})?$/;
const PATH = /^[\w./@+-]+$/;
/** Where Berth's own files are: the provider runs from there. */
const INSTALLATION = fileURLToPath(new URL('../..', import.meta.url)).replace(/\/$/, '');
const PROVIDER = 'berth-credential-provider';

/** Prints the files, or writes them into a directory. @throws CommandError */
export async function kubernetesConfig(
  config: Config,
  surroundings: Surroundings,
  flags: KubernetesFlags,
): Promise<void> {
  const files = filesFor(flags.for, await readFacts(config, surroundings, flags));
  if (flags.out === undefined) {
    const parts = Object.entries(files).map(([name, text]) => `# ---- ${name}\n${text}`);
    surroundings.stdout.write(parts.join('\n'));
    return;
  }
  for (const [name, text] of Object.entries(files)) {
    const path = join(flags.out, name);
    await mkdir(dirname(path), { recursive: true });
    await writeFile(path, text, { mode: name.startsWith('bin/') ? 0o755 : 0o644 });
    surroundings.stdout.write(`${path}\n`);
  }
}

async function readFacts(config: Config, { env }: Surroundings, flags: KubernetesFlags): Promise<Facts> {
  const server =
    flags.registry === undefined || flags.endpoint === undefined
      ? await readServerRecord(config.data).catch(() => undefined)
      : undefined;
  const registry = (
    flags.registry ?? (server === undefined ? '' : new URL(server.endpoint).host)
  ).toLowerCase();
  if (registry === '') {
    throw new CommandError('no server runs here: name the registry with --registry, as registry.example.com');
  }
  if (!REGISTRY.test(registry))
    throw new CommandError(`--registry ${registry} is not a host name with or without a port`);
  const endpoint =
    flags.endpoint ?? (flags.registry === undefined ? server?.endpoint : undefined) ?? `https://${registry}`;
  if (!URL.canParse(endpoint) || !/^https?:\/\/[a-z0-9.:-]+$/i.test(new URL(endpoint).origin)) {
    throw new CommandError(`--endpoint ${endpoint} is not an HTTP address`);
  }
  const [, account, named] = /^(\d{12})\.dkr[.-]ecr\.([a-z0-9-]+)\./.exec(registry) ?? [];
  const directory = resolve(flags.out ?? '.');
  if (flags.for === 'kind' && !PATH.test(directory)) {
    throw new CommandError(`${directory} has characters that are not safe in generated files`);
  }
  const region = named ?? (env['AWS_REGION'] || env['AWS_DEFAULT_REGION']) ?? server?.region ?? 'us-east-1';
  if (!/^[a-z0-9-]{1,64}$/.test(region)) throw new CommandError('AWS_REGION is not the name of a region');
  return {
    registry,
    endpoint: new URL(endpoint).origin,
    account: account ?? server?.account ?? '000000000000',
    region,
    ca: await readCa(flags.ca, config, endpoint),
    pods: flags.pods,
    directory,
  };
}

/** The certificates of `--ca`, else the server's own authority where it has one. Keys are left out. */
async function readCa(
  file: string | undefined,
  config: Config,
  endpoint: string,
): Promise<string | undefined> {
  if (file === undefined && !endpoint.startsWith('https:')) return undefined;
  const path = file ?? join(config.data, 'tls', 'ca.pem');
  const text = await readFile(path, 'utf8').catch((error: unknown) => {
    if (file === undefined) return '';
    throw new CommandError(`cannot read --ca: ${(error as Error).message}`);
  });
  const certificates = text.match(/-----BEGIN CERTIFICATE-----[\s\S]+?-----END CERTIFICATE-----/g);
  if (file !== undefined && certificates === null) throw new CommandError(`${file} holds no certificate`);
  return certificates === null ? undefined : `${certificates.join('\n')}\n`;
}

function filesFor(cluster: Cluster, facts: Facts): Files {
  const provider = providerFiles(facts);
  switch (cluster) {
    case 'containerd':
      return containerdFiles(facts);
    case 'kubelet':
      return { ...provider, 'kubelet-flags': kubeletFlags('/etc/berth') };
    case 'k3s':
      return { ...provider, ...k3sFiles(facts) };
    case 'kind':
      return { ...provider, ...containerdFiles(facts), 'kind.yaml': kindCluster(facts) };
    case 'eks':
      return {
        ...provider,
        ...containerdFiles(facts),
        'kubelet-flags': kubeletFlags('/etc/berth'),
        'irsa.yaml': irsa(facts),
        'irsa-trust.json': irsaTrust(facts),
        'pod-identity-associations.json': associations(facts),
        'pod-identity-trust.json': podIdentityTrust(facts),
        'pod-identity.yaml': podIdentity(),
      };
  }
}

/** How the registry is reached, which may be plain HTTP when the API endpoint is the same host. */
function registryUrl({ registry, endpoint }: Facts): string {
  const isPlain = endpoint === `http://${registry}`;
  return `${isPlain ? 'http' : 'https'}://${registry}`;
}

/** For containerd's `config_path`, which every runtime here has at /etc/containerd/certs.d. */
function containerdFiles(facts: Facts): Files {
  const { registry, ca } = facts;
  const directory = `certs.d/${registry}`;
  const url = registryUrl(facts);
  const authority = ca === undefined ? '' : `  ca = "/etc/containerd/${directory}/ca.crt"\n`;
  return {
    [`${directory}/hosts.toml`]: `server = "${url}"\n\n[host."${url}"]\n  capabilities = ["pull", "resolve"]\n${authority}`,
    ...(ca !== undefined && { [`${directory}/ca.crt`]: ca }),
  };
}

/** The kubelet's provider: its configuration, and the program that it looks up by the provider's name. */
function providerFiles(facts: Facts): Files {
  const { registry, endpoint, region, ca, pods } = facts;
  const tokens = pods
    ? `    tokenAttributes:
      serviceAccountTokenAudience: sts.amazonaws.com
      cacheType: ServiceAccount
      requireServiceAccount: true
      requiredServiceAccountAnnotationKeys:
        - eks.amazonaws.com/ecr-role-arn
`
    : '';
  return {
    'credential-provider.yaml': `apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
  - name: ${PROVIDER}
    apiVersion: credentialprovider.kubelet.k8s.io/v1
    matchImages:
      - "${registry}"
    defaultCacheDuration: "1h"
    args:
      - credential-provider
      - --registry
      - "${registry}"
    env:
      - name: AWS_ENDPOINT_URL
        value: "${endpoint}"
      - name: AWS_REGION
        value: "${region}"
${ca === undefined ? '' : '      - name: AWS_CA_BUNDLE\n        value: "/etc/berth/ca.crt"\n'}${tokens}`,
    ...(ca !== undefined && { 'ca.crt': ca }),
    [`bin/${PROVIDER}`]: `#!/bin/sh
# The kubelet runs this by the name of the provider. Berth has to be at /opt/berth, with its packages (npm ci).
set -eu
exec "/opt/berth/node_modules/node-linux-$(uname -m | sed 's/x86_64/x64/; s/aarch64/arm64/')/bin/node" /opt/berth/src/main.ts "$@"
`,
  };
}

function kubeletFlags(directory: string): string {
  return `--image-credential-provider-config=${directory}/credential-provider.yaml
--image-credential-provider-bin-dir=${directory}/bin
`;
}

function k3sFiles(facts: Facts): Files {
  const { registry, ca } = facts;
  const tls =
    ca === undefined ? '' : `configs:\n  "${registry}":\n    tls:\n      ca_file: /etc/berth/ca.crt\n`;
  return {
    'registries.yaml': `mirrors:\n  "${registry}":\n    endpoint:\n      - "${registryUrl(facts)}"\n${tls}`,
    'config.yaml': `image-credential-provider-config: /etc/berth/credential-provider.yaml\nimage-credential-provider-bin-dir: /etc/berth/bin\n`,
  };
}

/** kubeadm's two patches: the first node is made by init, others join. */
function kindCluster({ directory }: Facts): string {
  const patch = (kind: string): string => `      - |
        kind: ${kind}
        nodeRegistration:
          kubeletExtraArgs:
            image-credential-provider-config: /etc/berth/credential-provider.yaml
            image-credential-provider-bin-dir: /etc/berth/bin
`;
  return `kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
containerdConfigPatches:
  - |-
    [plugins."io.containerd.grpc.v1.cri".registry]
      config_path = "/etc/containerd/certs.d"
nodes:
  - role: control-plane
    kubeadmConfigPatches:
${patch('InitConfiguration')}${patch('JoinConfiguration')}    extraMounts:
      - hostPath: "${directory}/certs.d"
        containerPath: /etc/containerd/certs.d
        readOnly: true
      - hostPath: "${directory}"
        containerPath: /etc/berth
        readOnly: true
      - hostPath: "${INSTALLATION}"
        containerPath: /opt/berth
        readOnly: true
`;
}

const ISSUER = 'oidc.example.com/id/CLUSTER';

function irsa({ account, endpoint }: Facts): string {
  return `# With the EKS pod identity webhook the annotation is enough; without it, the volume and the variables below do the same.
apiVersion: v1
kind: ServiceAccount
metadata:
  name: builder
  namespace: default
  annotations:
    eks.amazonaws.com/role-arn: arn:aws:iam::${account}:role/builder
---
apiVersion: v1
kind: Pod
metadata:
  name: builder
  namespace: default
spec:
  serviceAccountName: builder
  containers:
    - name: main
      image: REGISTRY/IMAGE
      env:
        - name: AWS_ENDPOINT_URL
          value: "${endpoint}"
        - name: AWS_ROLE_ARN
          value: arn:aws:iam::${account}:role/builder
        - name: AWS_WEB_IDENTITY_TOKEN_FILE
          value: /var/run/secrets/eks.amazonaws.com/serviceaccount/token
      volumeMounts:
        - name: aws-iam-token
          mountPath: /var/run/secrets/eks.amazonaws.com/serviceaccount
          readOnly: true
  volumes:
    - name: aws-iam-token
      projected:
        sources:
          - serviceAccountToken:
              audience: sts.amazonaws.com
              expirationSeconds: 86400
              path: token
`;
}

function json(value: object): string {
  return `${JSON.stringify(value, null, 2)}\n`;
}

function irsaTrust({ account }: Facts): string {
  return json({
    Version: '2012-10-17',
    Statement: [
      {
        Effect: 'Allow',
        Principal: { Federated: `arn:aws:iam::${account}:oidc-provider/${ISSUER}` },
        Action: 'sts:AssumeRoleWithWebIdentity',
        Condition: {
          StringEquals: {
            [`${ISSUER}:sub`]: 'system:serviceaccount:default:builder',
            [`${ISSUER}:aud`]: 'sts.amazonaws.com',
          },
        },
      },
    ],
  });
}

function podIdentityTrust({ account, region }: Facts): string {
  return json({
    Version: '2012-10-17',
    Statement: [
      {
        Effect: 'Allow',
        Principal: { Service: 'pods.eks.amazonaws.com' },
        Action: ['sts:AssumeRole', 'sts:TagSession'],
        Condition: {
          StringEquals: {
            'aws:RequestTag/kubernetes-namespace': 'default',
            'aws:RequestTag/kubernetes-service-account': 'builder',
          },
          ArnEquals: { 'aws:SourceArn': `arn:aws:eks:${region}:${account}:cluster/CLUSTER` },
        },
      },
    ],
  });
}

function associations({ account }: Facts): string {
  const roleArn = `arn:aws:iam::${account}:role/builder`;
  return json({ associations: [{ namespace: 'default', serviceAccount: 'builder', roleArn }] });
}

function podIdentity(): string {
  return `# What EKS's webhook adds to a pod; "berth pod-identity-agent" runs on every node.
apiVersion: v1
kind: Pod
metadata:
  name: builder
  namespace: default
spec:
  serviceAccountName: builder
  containers:
    - name: main
      image: REGISTRY/IMAGE
      env:
        - name: AWS_CONTAINER_CREDENTIALS_FULL_URI
          value: http://169.254.170.23/v1/credentials
        - name: AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE
          value: /var/run/secrets/pods.eks.amazonaws.com/serviceaccount/eks-pod-identity-token
      volumeMounts:
        - name: eks-pod-identity-token
          mountPath: /var/run/secrets/pods.eks.amazonaws.com/serviceaccount
          readOnly: true
  volumes:
    - name: eks-pod-identity-token
      projected:
        sources:
          - serviceAccountToken:
              audience: pods.eks.amazonaws.com
              expirationSeconds: 86400
              path: eks-pod-identity-token
`;
}
