/** The credential and metadata endpoints that machines find on link-local addresses: of EC2 instances and of ECS tasks. */
export { createInstanceMetadata, type InstanceFacts, type InstanceMetadataOptions } from './instance.ts';
export { createTaskMetadata, type TaskMetadata } from './task.ts';
export {
  createRoleCredentials,
  type Assumption,
  type RoleCredentials,
  type RoleCredentialsOptions,
} from './role-credentials.ts';
export { isMachineLocal, listenHttp, readListenAddress, type Listening } from './listen.ts';
