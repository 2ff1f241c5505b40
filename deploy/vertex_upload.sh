#!/bin/sh
# Upload the server to Vertex AI and deploy it on an endpoint:
#   PROJECT=... REGION=europe-west4 deploy/vertex_upload.sh gs://bucket/gemma-3-1b-it
# The server reads the port and the routes from the variables AIP_* that Vertex AI sets, and copies the weights from the
# folder in Cloud Storage (AIP_STORAGE_URI).
set -eu

weights=${1:?"Usage: PROJECT=... REGION=... $0 gs://bucket/folder"}
: "${PROJECT:?}" "${REGION:?}"
image=$REGION-docker.pkg.dev/$PROJECT/gemwright/gemwright-serve:0.1.0

docker build -f deploy/Dockerfile --build-arg EXTRAS=serve -t "$image" .
docker push "$image"

model=$(gcloud ai models upload --project="$PROJECT" --region="$REGION" \
    --display-name=gemwright \
    --container-image-uri="$image" \
    --container-command=gemwright \
    --container-args=serve,--host=0.0.0.0 \
    --container-ports=8080 \
    --container-health-route=/readyz \
    --container-predict-route=/predict \
    --container-deployment-timeout-seconds=1800 \
    --artifact-uri="$weights" \
    --format='value(model)')

endpoint=$(gcloud ai endpoints create --project="$PROJECT" --region="$REGION" \
    --display-name=gemwright --format='value(name)')
gcloud ai endpoints deploy-model "$endpoint" --project="$PROJECT" --region="$REGION" \
    --model="$model" --display-name=gemwright --machine-type=n2-standard-8 \
    --min-replica-count=1 --max-replica-count=4 --traffic-split=0=100

request=$(mktemp)
trap 'rm -f "$request"' EXIT
printf '{"instances": [{"prompt": "Once upon a time", "max_tokens": 20}]}' > "$request"
gcloud ai endpoints predict "$endpoint" --project="$PROJECT" --region="$REGION" --json-request="$request"
