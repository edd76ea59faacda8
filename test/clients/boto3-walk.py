"""What a program with boto3 sees, printed as one JSON object. The endpoint is in AWS_ENDPOINT_URL."""
import datetime
import hashlib
import json
import os

import boto3
import botocore.exceptions

# Given by name: boto3 before 1.28 does not read the variable.
endpoint = os.environ['AWS_ENDPOINT_URL']
ecr = boto3.client('ecr', endpoint_url=endpoint)
iam = boto3.client('iam', endpoint_url=endpoint)
sts = boto3.client('sts', endpoint_url=endpoint)
seen = {}


def raised(expected, call, **arguments):
    """Class, code and status of the error of a call; it has to be of the class that the service model gives it."""
    try:
        call(**arguments)
    except expected as error:
        status = error.response['ResponseMetadata']['HTTPStatusCode']
        return [type(error).__name__, error.response['Error']['Code'], status, error.response['Error']['Message']]
    return None


def is_time(value):
    """An aware datetime within a day of now."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return isinstance(value, datetime.datetime) and abs(value - now) < datetime.timedelta(days=1)


def pages(client, operation, key, page_size, **arguments):
    """Page lengths, then the concatenation."""
    found = client.get_paginator(operation).paginate(PaginationConfig={'PageSize': page_size}, **arguments)
    lists = [page[key] for page in found]
    return [len(one) for one in lists], [item for one in lists for item in one]


seen['account'] = sts.get_caller_identity()['Account']

# Nothing there yet: lists are present and empty.
seen['empty'] = {
    'describe_repositories': ecr.describe_repositories()['repositories'],
    'list_policies': iam.list_policies(Scope='Local')['Policies'],
    'list_roles': iam.list_roles()['Roles'],
    'paginator': pages(ecr, 'describe_repositories', 'repositories', 2),
}

names = ['team/r%d' % i for i in range(5)]
made = [ecr.create_repository(repositoryName=name)['repository'] for name in names]
app = {'repositoryName': names[0]}
seen['empty']['list_images'] = ecr.list_images(**app)['imageIds']
seen['empty']['describe_images'] = ecr.describe_images(**app)['imageDetails']
seen['empty']['list_tags'] = ecr.list_tags_for_resource(resourceArn=made[0]['repositoryArn'])['tags']

# Layers and images through the API: blobs go as base64, both ways unseen.
blob = bytes(range(256)) * 300
digests = []
for content in (b'{}', blob):
    upload = ecr.initiate_layer_upload(**app)
    ecr.upload_layer_part(
        uploadId=upload['uploadId'], partFirstByte=0, partLastByte=len(content) - 1, layerPartBlob=content, **app
    )
    digest = 'sha256:' + hashlib.sha256(content).hexdigest()
    done = ecr.complete_layer_upload(uploadId=upload['uploadId'], layerDigests=[digest], **app)
    digests.append(done['layerDigest'])
images = []
for i in range(5):
    manifest = json.dumps({
        'schemaVersion': 2,
        'mediaType': 'application/vnd.oci.image.manifest.v1+json',
        'config': {'mediaType': 'application/vnd.oci.image.config.v1+json', 'size': 2, 'digest': digests[0]},
        'layers': [{
            'mediaType': 'application/vnd.oci.image.layer.v1.tar', 'size': len(blob), 'digest': digests[1]
        }],
        'annotations': {'i': str(i)},
    })
    image = ecr.put_image(imageManifest=manifest, imageTag='v%d' % i, **app)['image']
    assert image['imageId']['imageDigest'] == 'sha256:' + hashlib.sha256(manifest.encode()).hexdigest()
    images.append(image['imageId']['imageDigest'])
seen['images'] = images

# Paginators: every item once, in pages no longer than asked.
lengths, found = pages(ecr, 'describe_repositories', 'repositories', 2)
seen['describe_repositories'] = [lengths, [one['repositoryName'] for one in found]]
lengths, found = pages(ecr, 'describe_images', 'imageDetails', 2, **app)
seen['describe_images'] = [lengths, sorted(tag for one in found for tag in one['imageTags'])]
details = found
lengths, found = pages(ecr, 'list_images', 'imageIds', 2, filter={'tagStatus': 'TAGGED'}, **app)
seen['list_images'] = [lengths, sorted(one['imageTag'] for one in found)]
for user in range(5):
    iam.create_user(UserName='user%d' % user)
document = {'Version': '2012-10-17', 'Statement': [{'Effect': 'Allow', 'Action': 'ecr:*', 'Resource': '*'}]}
for policy in range(3):
    iam.create_policy(PolicyName='policy%d' % policy, PolicyDocument=json.dumps(document))
lengths, found = pages(iam, 'list_users', 'Users', 2)
seen['list_users'] = [lengths, [one['UserName'] for one in found]]
users = found
lengths, found = pages(iam, 'list_policies', 'Policies', 2, Scope='Local')
seen['list_policies'] = [lengths, [one['PolicyName'] for one in found]]
policy_arn = found[0]['Arn']

# A paginator that stops in the middle of a page, and one that goes on from there.
config = {'PageSize': 2, 'MaxItems': 3}
paginator = ecr.get_paginator('describe_repositories')
part = paginator.paginate(PaginationConfig=config).build_full_result()
rest = paginator.paginate(PaginationConfig={'StartingToken': part['NextToken']}).build_full_result()
seen['resumed'] = [[one['repositoryName'] for one in half['repositories']] for half in (part, rest)]
seen['search'] = sorted(paginator.paginate().search("repositories[?ends_with(repositoryName, '3')].repositoryName"))

# The preview of a lifecycle policy: waiter, then paginator.
waiter = ecr.get_waiter('lifecycle_policy_preview_complete')
rule = {
    'rulePriority': 1,
    'selection': {'tagStatus': 'any', 'countType': 'imageCountMoreThan', 'countNumber': 2},
    'action': {'type': 'expire'},
}
text = json.dumps({'rules': [rule]})
patience = {'Delay': 1, 'MaxAttempts': 60}
seen['started'] = ecr.start_lifecycle_policy_preview(lifecyclePolicyText=text, **app)['status']
waiter.wait(WaiterConfig=patience, **app)
lengths, found = pages(ecr, 'get_lifecycle_policy_preview', 'previewResults', 1, **app)
seen['preview'] = [lengths, [one['imageTags'] for one in found]]
seen['summary'] = ecr.get_lifecycle_policy_preview(**app)['summary']['expiringImageTotalCount']
whole = ecr.get_paginator('get_lifecycle_policy_preview').paginate(**app).build_full_result()
seen['preview status'] = whole['status']
preview = found
try:
    waiter.wait(WaiterConfig=patience, repositoryName=names[1])
except botocore.exceptions.WaiterError as error:
    seen['waiter error'] = error.last_response['Error']['Code']

# Times are aware datetimes in both protocols.
authorization = ecr.get_authorization_token()['authorizationData'][0]
seen['times'] = {
    'createdAt': is_time(made[0]['createdAt']),
    'imagePushedAt': all(is_time(one['imagePushedAt']) for one in details),
    'preview': all(is_time(one['imagePushedAt']) for one in preview),
    'expiresAt': is_time(authorization['expiresAt']),
    'CreateDate': all(is_time(one['CreateDate']) for one in users),
}

# Each error by its own class, and by its own class only.
ecr.put_image_tag_mutability(imageTagMutability='IMMUTABLE', **app)
other = json.dumps({**json.loads(manifest), 'annotations': {}})
nobody = {'repositoryName': 'no/body'}
e, i = ecr.exceptions, iam.exceptions
seen['errors'] = [
    raised(e.RepositoryNotFoundException, ecr.describe_repositories, repositoryNames=['no/body']),
    raised(e.RepositoryNotFoundException, ecr.list_images, **nobody),
    raised(e.RepositoryAlreadyExistsException, ecr.create_repository, **app),
    raised(e.RepositoryNotEmptyException, ecr.delete_repository, **app),
    raised(e.RepositoryPolicyNotFoundException, ecr.get_repository_policy, **app),
    raised(e.LifecyclePolicyNotFoundException, ecr.get_lifecycle_policy, **app),
    raised(e.LifecyclePolicyPreviewNotFoundException, ecr.get_lifecycle_policy_preview, repositoryName=names[1]),
    raised(e.RegistryPolicyNotFoundException, ecr.get_registry_policy),
    raised(e.ImageNotFoundException, ecr.describe_images, imageIds=[{'imageTag': 'none'}], **app),
    raised(e.ImageAlreadyExistsException, ecr.put_image, imageManifest=manifest, imageTag='v4', **app),
    raised(e.ImageTagAlreadyExistsException, ecr.put_image, imageManifest=other, imageTag='v4', **app),
    raised(e.LayersNotFoundException, ecr.get_download_url_for_layer, layerDigest=images[0], **app),
    raised(e.UploadNotFoundException, ecr.complete_layer_upload, layerDigests=[digests[0]],
           uploadId='00000000-0000-0000-0000-000000000000', **app),
    raised(e.InvalidParameterException, ecr.create_repository, repositoryName='UP'),
    raised(e.ClientError, ecr.describe_pull_through_cache_rules),
    raised(i.NoSuchEntityException, iam.get_user, UserName='nobody'),
    raised(i.EntityAlreadyExistsException, iam.create_user, UserName='user0'),
    raised(i.MalformedPolicyDocumentException, iam.create_policy, PolicyName='bad', PolicyDocument='{}'),
]

# A partial failure is an answer.
batch = ecr.batch_delete_image(imageIds=[{'imageTag': 'v0'}, {'imageTag': 'none'}], **app)
seen['batch'] = [batch['imageIds'], [[one['imageId'], one['failureCode']] for one in batch['failures']]]

# A principal of its own, allowed nothing.
key = iam.create_access_key(UserName='user0')['AccessKey']
session = boto3.Session(aws_access_key_id=key['AccessKeyId'], aws_secret_access_key=key['SecretAccessKey'])
seen['denied'] = raised(
    e.ClientError, session.client('ecr', endpoint_url=endpoint).describe_repositories, repositoryNames=[names[0]]
)
print(json.dumps(seen))
