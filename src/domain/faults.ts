/**
 * Faults are data: everything a client can be told has one entry here, and each door maps the entry to its own
 * protocol. Nothing below a door knows HTTP.
 *
 * Sources: ECR API reference and ecr-api.md §3 (codes, texts), iam-sts.md §1.6 and §6.2 (IAM/STS), the OCI
 * distribution specification §errors and registry-protocol.md §3.3 (the `/v2/` column).
 */

/** How a fault looks at each door. `aws` is the JSON 1.1 status, `query` the IAM/STS code and status. */
interface FaultEntry {
  readonly aws: number;
  readonly query: readonly [code: string, status: number];
  readonly oci: readonly [code: string, status: number];
}

function entry(oci: readonly [string, number], query: readonly [string, number], aws = 400): FaultEntry {
  return { aws, query, oci };
}

const denied = ['DENIED', 403] as const;
const unsupported = ['UNSUPPORTED', 405] as const;
const validation = ['ValidationError', 400] as const;
const unavailable = ['UNAVAILABLE', 503] as const;

export const FAULTS = {
  // Authentication and authorisation
  AccessDeniedException: entry(denied, ['AccessDenied', 403]),
  MissingAuthenticationTokenException: entry(['UNAUTHORIZED', 401], ['MissingAuthenticationToken', 403]),
  IncompleteSignatureException: entry(['UNAUTHORIZED', 401], ['IncompleteSignature', 400]),
  InvalidSignatureException: entry(['UNAUTHORIZED', 401], ['SignatureDoesNotMatch', 403]),
  UnrecognizedClientException: entry(['UNAUTHORIZED', 401], ['InvalidClientTokenId', 403]),
  ExpiredTokenException: entry(denied, ['ExpiredToken', 403]),
  // A registry token that cannot be opened (400) or is past its 12 hours (403): registry-protocol.md §1.4
  InvalidRegistryToken: entry(['DENIED', 400], ['InvalidClientTokenId', 403]),
  ExpiredRegistryToken: entry(denied, ['ExpiredToken', 403]),
  RegistryNotResolved: entry(denied, validation),
  // The protocol itself
  UnknownOperationException: entry(unsupported, ['InvalidAction', 400]),
  SerializationException: entry(['MANIFEST_INVALID', 400], ['MalformedInput', 400]),
  MalformedQueryString: entry(unsupported, ['MalformedQueryString', 400]),
  RequestEntityTooLargeException: entry(['SIZE_INVALID', 413], ['RequestEntityTooLarge', 413], 413),
  ThrottlingException: entry(['TOOMANYREQUESTS', 429], ['Throttling', 400]),
  ServiceUnavailableException: entry(unavailable, ['ServiceUnavailable', 503], 503),
  ServerException: entry(['UNKNOWN', 500], ['InternalFailure', 500], 500),
  OperationNotBuilt: entry(unsupported, ['NotImplemented', 501], 501),
  // Parameters
  InvalidParameterException: entry(unsupported, validation),
  ValidationException: entry(unsupported, validation),
  InvalidTagParameterException: entry(unsupported, validation),
  TooManyTagsException: entry(unsupported, ['LimitExceeded', 409]),
  LimitExceededException: entry(denied, ['LimitExceeded', 409]),
  // Repositories
  RepositoryNotFoundException: entry(['NAME_UNKNOWN', 404], ['NoSuchEntity', 404]),
  RepositoryAlreadyExistsException: entry(denied, ['EntityAlreadyExists', 409]),
  RepositoryNotEmptyException: entry(denied, ['DeleteConflict', 409]),
  RepositoryPolicyNotFoundException: entry(['UNKNOWN', 404], ['NoSuchEntity', 404]),
  KmsException: entry(denied, ['KmsException', 400]),
  LifecyclePolicyNotFoundException: entry(['UNKNOWN', 404], ['NoSuchEntity', 404]),
  LifecyclePolicyPreviewNotFoundException: entry(['UNKNOWN', 404], ['NoSuchEntity', 404]),
  LifecyclePolicyPreviewInProgressException: entry(denied, ['EntityAlreadyExists', 409]),
  // Registries and their settings
  RegistryPolicyNotFoundException: entry(['UNKNOWN', 404], ['NoSuchEntity', 404]),
  TemplateAlreadyExistsException: entry(denied, ['EntityAlreadyExists', 409]),
  TemplateNotFoundException: entry(['UNKNOWN', 404], ['NoSuchEntity', 404]),
  ExclusionAlreadyExistsException: entry(denied, ['EntityAlreadyExists', 409]),
  ExclusionNotFoundException: entry(['UNKNOWN', 404], ['NoSuchEntity', 404]),
  // Images
  ImageNotFoundException: entry(['MANIFEST_UNKNOWN', 404], ['NoSuchEntity', 404]),
  ImageAlreadyExistsException: entry(['TAG_INVALID', 400], ['EntityAlreadyExists', 409]),
  ImageTagAlreadyExistsException: entry(['TAG_INVALID', 400], ['EntityAlreadyExists', 409]),
  ImageDigestDoesNotMatchException: entry(['MANIFEST_INVALID', 400], validation),
  ImageStorageClassUpdateNotSupportedException: entry(denied, ['DeleteConflict', 409]),
  ImageReferencedByManifestList: entry(unsupported, ['DeleteConflict', 409]),
  ReferencedImagesNotFoundException: entry(['MANIFEST_BLOB_UNKNOWN', 400], ['NoSuchEntity', 404]),
  ManifestInvalid: entry(['MANIFEST_INVALID', 400], validation),
  ManifestTooLarge: entry(['MANIFEST_INVALID', 413], validation, 413),
  // Layers and uploads
  LayersNotFoundException: entry(['MANIFEST_BLOB_UNKNOWN', 400], ['NoSuchEntity', 404]),
  LayerNotFound: entry(['BLOB_UNKNOWN', 404], ['NoSuchEntity', 404]),
  LayerInaccessibleException: entry(['BLOB_UNKNOWN', 404], ['NoSuchEntity', 404]),
  LayerAlreadyExistsException: entry(['BLOB_UPLOAD_INVALID', 400], ['EntityAlreadyExists', 409]),
  LayerPartTooSmallException: entry(['BLOB_UPLOAD_INVALID', 400], validation),
  InvalidLayerException: entry(['DIGEST_INVALID', 400], validation),
  InvalidLayerPartException: entry(['BLOB_UPLOAD_INVALID', 416], validation),
  UploadNotFoundException: entry(['BLOB_UPLOAD_UNKNOWN', 404], ['NoSuchEntity', 404]),
  EmptyUploadException: entry(['BLOB_UPLOAD_INVALID', 400], validation),
  // OCI only
  DigestInvalid: entry(['DIGEST_INVALID', 400], validation),
  NameInvalid: entry(['NAME_INVALID', 400], validation),
  TagInvalid: entry(['TAG_INVALID', 400], validation),
  SizeInvalid: entry(['SIZE_INVALID', 400], validation),
  RangeInvalid: entry(['RANGE_INVALID', 416], validation),
  PreconditionFailed: entry(['PRECONDITION_FAILED', 412], validation),
  PaginationNumberInvalid: entry(['PAGINATION_NUMBER_INVALID', 400], validation),
  RouteUnknown: entry(['UNSUPPORTED', 404], validation),
  MethodNotAllowed: entry(unsupported, validation),
  // IAM and STS (iam-sts.md §6.2)
  NoSuchEntity: entry(denied, ['NoSuchEntity', 404]),
  EntityAlreadyExists: entry(denied, ['EntityAlreadyExists', 409]),
  DeleteConflict: entry(denied, ['DeleteConflict', 409]),
  LimitExceeded: entry(denied, ['LimitExceeded', 409]),
  InvalidInput: entry(denied, ['InvalidInput', 400]),
  MalformedPolicyDocument: entry(denied, ['MalformedPolicyDocument', 400]),
  InvalidParameterValue: entry(denied, ['InvalidParameterValue', 400]),
  PolicyNotAttachable: entry(denied, ['PolicyNotAttachable', 400]),
  UnmodifiableEntity: entry(denied, ['UnmodifiableEntity', 400]),
  ValidationError: entry(unsupported, validation),
  PasswordPolicyViolation: entry(denied, ['PasswordPolicyViolation', 400]),
  InvalidUserType: entry(denied, ['InvalidUserType', 400]),
  ReportNotPresent: entry(denied, ['ReportNotPresent', 410]),
  ReportExpired: entry(denied, ['ReportExpired', 410]),
  // Identity tokens and session policies (iam-sts.md §5.8). WHY two expiries: a token is not a session.
  InvalidIdentityToken: entry(denied, ['InvalidIdentityToken', 400]),
  ExpiredIdentityToken: entry(denied, ['ExpiredTokenException', 400]),
  IDPCommunicationError: entry(denied, ['IDPCommunicationError', 400]),
  PackedPolicyTooLarge: entry(denied, ['PackedPolicyTooLarge', 400]),
  InvalidAuthorizationMessageException: entry(denied, ['InvalidAuthorizationMessageException', 400]),
} as const satisfies Record<string, FaultEntry>;

export type FaultCode = keyof typeof FAULTS;

/** Members some faults carry beside the message, e.g. `lastValidByteReceived` of InvalidLayerPartException. */
export type FaultDetail = Readonly<Record<string, string | number | readonly string[]>>;

/**
 * An answer that refuses. The AWS doors send `code` and `message` (and the modelled members of `detail`), the OCI
 * door its own code from {@link FAULTS} and the same message.
 */
export class Fault extends Error {
  override readonly name = 'Fault';
  readonly code: FaultCode;
  readonly detail: FaultDetail | undefined;

  constructor(code: FaultCode, message: string, detail?: FaultDetail) {
    super(message);
    this.code = code;
    this.detail = detail;
  }
}

/** ECR's single frame for bad input (ecr-api.md §1.4). `member` is spelled as in the message, e.g. `PolicyText`. */
export function invalidParameter(member: string, constraint: string): Fault {
  return new Fault(
    'InvalidParameterException',
    `Invalid parameter at '${member}' failed to satisfy constraint: '${constraint}'`,
  );
}

export function repositoryNotFound(name: string, account: string): Fault {
  return new Fault(
    'RepositoryNotFoundException',
    `The repository with name '${name}' does not exist in the registry with id '${account}'`,
  );
}

export function repositoryPolicyNotFound(name: string, account: string): Fault {
  return new Fault(
    'RepositoryPolicyNotFoundException',
    `Repository policy does not exist for the repository with name '${name}' in the registry with id '${account}'`,
  );
}

export function lifecyclePolicyNotFound(name: string, account: string): Fault {
  return new Fault(
    'LifecyclePolicyNotFoundException',
    `Lifecycle policy does not exist for the repository with name '${name}' in the registry with id '${account}'`,
  );
}

/** No preview was ever started. */
export function lifecyclePreviewNotFound(name: string, account: string): Fault {
  return new Fault(
    'LifecyclePolicyPreviewNotFoundException',
    `Lifecycle policy preview does not exist for the repository with name '${name}' in the registry with id '${account}'`,
  );
}

export function lifecyclePreviewInProgress(name: string, account: string): Fault {
  return new Fault(
    'LifecyclePolicyPreviewInProgressException',
    `Lifecycle policy preview is in progress for the repository with name '${name}' in the registry with id '${account}'`,
  );
}

/** `DescribeImages` and its relatives: the half that was not asked for is the literal `null`. */
export function imageNotFound(
  image: { readonly digest?: string | undefined; readonly tag?: string | undefined },
  name: string,
  account: string,
): Fault {
  return new Fault(
    'ImageNotFoundException',
    `The image with imageId {imageDigest:'${image.digest ?? 'null'}', imageTag:'${image.tag ?? 'null'}'} does not ` +
      `exist within the repository with name '${name}' in the registry with id '${account}'`,
  );
}

export function layersNotFound(digests: readonly string[], name: string, account: string): Fault {
  return new Fault(
    'LayersNotFoundException',
    `Layers with digests '[${digests.join(', ')}]' required for pushing image into repository with name '${name}' ` +
      `in the registry with id '${account}' do not exist`,
  );
}

export function referencedImagesNotFound(digests: readonly string[], name: string, account: string): Fault {
  return new Fault(
    'ReferencedImagesNotFoundException',
    `Images with digests '[${digests.join(', ')}]' required for pushing image into repository with name '${name}' ` +
      `in the registry with id '${account}' do not exist`,
  );
}

/**
 * WHY: two wordings. AWS says "the tag" since exclusion filters exist and said "the repository" before; kaniko's
 * `--push-ignore-immutable-tag-errors` matches the old sentence, so a wholly immutable repository keeps it (ADR 0006).
 */
export function imageTagAlreadyExists(tag: string, name: string, mutability: string): Fault {
  const what = mutability === 'IMMUTABLE' ? 'repository' : 'tag';
  return new Fault(
    'ImageTagAlreadyExistsException',
    `The image tag '${tag}' already exists in the '${name}' repository and cannot be overwritten because the ${what} is immutable.`,
  );
}

export function uploadNotFound(uploadId: string, name: string, account: string): Fault {
  return new Fault(
    'UploadNotFoundException',
    `The upload with id '${uploadId}' does not exist in the repository with name '${name}' in the registry with id '${account}'`,
  );
}
