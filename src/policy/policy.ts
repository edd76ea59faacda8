/** The IAM policy language as pure functions: compile, validate, evaluate, explain. No I/O, no clock. */
export {
  compilePolicy,
  formatPolicyDocument,
  policySizeOf,
  principalsNamed,
  replacePrincipals,
} from './document.ts';
export type { CompiledPolicy } from './document.ts';
export { PolicySyntaxError } from './json.ts';
export { evaluate } from './evaluate.ts';
export type {
  Decision,
  Explanation,
  NamedPolicy,
  PolicyExplanation,
  PolicySet,
  PolicyType,
  Reason,
} from './evaluate.ts';
export type { StatementExplanation } from './evaluate.ts';
export type { AccessRequest, Mismatch } from './match.ts';
export type { Caller, NamedPrincipal, PrincipalKind } from './principals.ts';
export { denialMessage } from './denial.ts';
export { validateIdentityPolicy } from './validate-identity.ts';
export { validateTrustPolicy } from './validate-trust.ts';
export { validateRegistryPolicy, validateRepositoryPolicy } from './validate-registry.ts';
